//! A page on adapters in several bases, compared at matched numbers of parameters.

use maud::{Markup, html};

use crate::number;
use crate::page::Page;
use crate::plot::{Caption, LineChart, Series, figure};
use crate::text::{flow, plain};

/// What was compared, and how it came out.
#[derive(Debug, Clone, Default)]
pub struct AdapterComparison {
    /// The title of the page.
    pub title: String,
    /// Model, site and dictionary.
    pub subtitle: String,
    /// Data sets, one section each.
    pub data: Vec<ComparedData>,
    /// Remarks, one paragraph each.
    pub notes: Vec<String>,
}

/// One data set.
#[derive(Debug, Clone, Default)]
pub struct ComparedData {
    /// Its name.
    pub name: String,
    /// Loss on unseen samples without an adapter.
    pub loss_before: f64,
    /// Basis by basis, budget by budget.
    pub groups: Vec<ComparedGroup>,
}

/// The trainings of one basis with one budget.
#[derive(Debug, Clone, Default)]
pub struct ComparedGroup {
    /// The basis.
    pub basis: String,
    /// Numbers that make up an adapter.
    pub parameters: f64,
    /// Loss on unseen samples, one a seed.
    pub losses: Vec<f64>,
    /// Features that carry 90 % of the mean changes, one a seed.
    pub features_90: Vec<f64>,
    /// The same for changes that do not cancel.
    pub features_90_absolute: Vec<f64>,
    /// Share of the change that the dictionary sees, one a seed.
    pub change_explained: Vec<f64>,
    /// Overlap of those features over seeds, one a seed; none for one seed.
    pub stability: Vec<f64>,
    /// The learning rate.
    pub lr: f64,
}

/// Mean and standard deviation (of a sample; zero for one number).
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// The whole page.
pub fn render(page: &AdapterComparison) -> String {
    let mut out = Page::new(&page.title).subtitle(flow(&page.subtitle));
    for (number, data) in page.data.iter().enumerate() {
        out = out.section(&format!("data-{number}"), &data.name, section(number, data));
    }
    out.section(
        "how",
        "How this was made",
        html! { ul.caveats { @for note in &page.notes { li { (plain(note)) } } } },
    )
    .foot(html! { "Written by pullback " (env!("CARGO_PKG_VERSION")) ". The page loads nothing and sends nothing." })
    .render()
}

fn section(number: usize, data: &ComparedData) -> Markup {
    let mut bases: Vec<&str> = Vec::new();
    for group in &data.groups {
        if !bases.contains(&group.basis.as_str()) {
            bases.push(&group.basis);
        }
    }
    let series = |point: &dyn Fn(&ComparedGroup) -> Vec<(f64, f64)>| -> Vec<Series> {
        let of = |basis: &&str| {
            let groups = data.groups.iter().filter(|group| group.basis == *basis);
            Series::new(basis, &groups.flat_map(point).collect::<Vec<_>>())
        };
        bases.iter().map(of).collect()
    };
    let mean = |values: &[f64]| mean_and_deviation(values).0;
    let loss = LineChart {
        caption: Caption::new(
            &format!("loss-{number}"),
            "Loss against parameters",
            "Mean loss on unseen samples over the number of parameters, a curve for each basis.",
        ),
        x_name: "parameters (logarithmic)".to_owned(),
        y_name: "loss on unseen samples (nats a token)".to_owned(),
        series: series(&|group| vec![(group.parameters, mean(&group.losses))]),
        log_x: true,
        ..LineChart::default()
    };
    let readable = LineChart {
        caption: Caption::new(
            &format!("readable-{number}"),
            "Readability against loss",
            "How few features carry 90 % of the measured change over the loss on unseen samples, a point for each training.",
        ),
        x_name: "features that carry 90 % of the change (logarithmic)".to_owned(),
        y_name: "loss on unseen samples (nats a token)".to_owned(),
        series: series(&|group| {
            group
                .features_90
                .iter()
                .zip(&group.losses)
                .map(|(features, loss)| (*features, *loss))
                .collect()
        }),
        log_x: true,
        unjoined: true,
        ..LineChart::default()
    };
    html! {
        p { "Without an adapter the loss on unseen samples is " (number::fixed(data.loss_before, 3)) " nats a token." }
        div.plots {
            (figure(&loss.caption, loss.draw(), html! { "Means over seeds." }))
            (figure(&readable.caption, readable.draw(), html! {
                "Lower and further to the left is better: less loss, read in fewer features."
            }))
        }
        (table(data))
    }
}

fn table(data: &ComparedData) -> Markup {
    let with = |values: &[f64], digits: usize| {
        let (mean, deviation) = mean_and_deviation(values);
        if values.is_empty() {
            return "–".to_owned();
        }
        if values.len() == 1 {
            return number::fixed(mean, digits);
        }
        format!(
            "{} ± {}",
            number::fixed(mean, digits),
            number::fixed(deviation, digits)
        )
    };
    html! {
        table {
            thead { tr {
                th { "basis" } th { "parameters" } th { "loss" } th { "features for 90 %" } th { "without cancelling" }
                th { "stability" } th { "seen by the dictionary" } th { "rate" }
            } }
            tbody { @for group in &data.groups { tr {
                td data-name="basis" { (group.basis) }
                td.num data-name="parameters" { (number::count(group.parameters as u64)) }
                td.num data-name="loss" { (with(&group.losses, 3)) }
                td.num data-name="features for 90 %" { (with(&group.features_90, 0)) }
                td.num data-name="without cancelling" { (with(&group.features_90_absolute, 0)) }
                td.num data-name="stability" { (with(&group.stability, 2)) }
                td.num data-name="seen by the dictionary" { (with(&group.change_explained, 2)) }
                td.num data-name="rate" { (number::significant(group.lr, 2)) }
            } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_are_those_of_the_definition() {
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 6.0]);
        assert!((mean - 3.0).abs() < 1e-12 && (deviation - 7.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_deviation(&[2.0]), (2.0, 0.0));
    }

    #[test]
    fn a_page_names_every_basis_and_its_figures() {
        let group = |basis: &str, losses: Vec<f64>| ComparedGroup {
            basis: basis.to_owned(),
            parameters: 1153.0,
            features_90: vec![12.0; losses.len()],
            features_90_absolute: vec![40.0; losses.len()],
            change_explained: vec![0.5; losses.len()],
            stability: vec![0.25; losses.len()],
            losses,
            lr: 0.01,
        };
        let page = render(&AdapterComparison {
            title: "Four bases".to_owned(),
            subtitle: "a model".to_owned(),
            data: vec![ComparedData {
                name: "sailors".to_owned(),
                loss_before: 4.5,
                groups: vec![
                    group("residual", vec![3.0, 3.2]),
                    group("sparse", vec![3.3, 3.3]),
                ],
            }],
            notes: vec!["made so".to_owned()],
        });
        for part in [
            "sailors",
            "residual",
            "sparse",
            "3.100 ± 0.141",
            "4.500",
            "made so",
            "1,153",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }
}
