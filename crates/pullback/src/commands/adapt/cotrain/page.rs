//! The page of a run.

use pullback_adapters::{CotrainResult, GrowPoint, GrownSeed, JudgedDictionary, Spread};
use pullback_model::Site;
use pullback_report::grown::{self, FigureTable, GrownPage};
use pullback_report::number;
use pullback_report::plot::{Caption, LineChart, Series};

/// The whole page.
pub(super) fn render(result: &CotrainResult) -> String {
    let config = &result.config;
    let mut tables = vec![over_all(result), models(result), site_by_site(result)];
    tables.retain(|table| !table.rows.is_empty());
    grown::render(&GrownPage {
        title: "A model and its dictionaries, grown together".to_owned(),
        subtitle: format!(
            "{} steps of {} × {} tokens, weight {}, {} features, {} active, {} seeds",
            config.steps,
            config.batch,
            config.context,
            config.weight,
            number::count(config.dictionary.features as u64),
            config.dictionary.kind.k().unwrap_or(0),
            result.seeds.len()
        ),
        lead: "Original: the dictionaries that grew with the co-trained model. Fresh: trained afterwards on that model. \
               Fresh-on-twin: trained afterwards on the model that grew alone, on the same data with the same seed. Figures \
               are means over seeds, ± the standard deviation between them."
            .to_owned(),
        tables,
        charts: result.seeds.iter().flat_map(charts).collect(),
        notes: vec![
            format!(
                "The co-trained model minimises its cross-entropy plus {} times the mean over {} sites of Σ‖u − û‖²/Σ‖u − ū‖², \
                 where u are activations, each in units of its own length. That share does not change with the lengths of \
                 activations.",
                config.weight,
                config.sites.len()
            ),
            "Dictionaries neither see nor replace the first position of a sequence. All of them had the same number of steps on \
             batches of the same size, and are judged with the same number of active features."
                .to_owned(),
            "The increase of the cross-entropy is that of a dictionary's own model, on held-out text, when the reconstruction \
             takes the place of the activation at its site alone."
                .to_owned(),
        ],
    })
}

fn spread(of: Spread) -> String {
    match of.deviation {
        Some(deviation) => format!("{:.4} ± {deviation:.4}", of.mean),
        None => format!("{:.4}", of.mean),
    }
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|&name| name.to_owned()).collect()
}

fn over_all(result: &CotrainResult) -> FigureTable {
    let rows = result.summary.dictionaries.iter().map(|row| {
        vec![
            row.dictionary.clone(),
            spread(row.ce_increase),
            spread(row.explained_variance),
            spread(row.l0),
            spread(row.silent_fraction),
        ]
    });
    FigureTable {
        heading: "At equal numbers of active features".to_owned(),
        columns: names(&[
            "Dictionary",
            "Cross-entropy increase (nats)",
            "Explained variance",
            "L0",
            "Silent features",
        ]),
        names: 1,
        rows: rows.collect(),
    }
}

fn models(result: &CotrainResult) -> FigureTable {
    let rows = result.summary.models.iter();
    FigureTable {
        heading: "The two models".to_owned(),
        columns: names(&["Model", "Held-out cross-entropy (nats)"]),
        names: 1,
        rows: rows
            .map(|row| vec![row.model.clone(), spread(row.held_out)])
            .collect(),
    }
}

fn site_by_site(result: &CotrainResult) -> FigureTable {
    let row = |site: Site, name: &str| {
        let figure = |figure: fn(&JudgedDictionary) -> f64| {
            let all = result.seeds.iter().flat_map(|seed| &seed.dictionaries);
            let own = all.filter(|d| d.site == site && d.dictionary == name);
            spread(Spread::of(&own.map(figure).collect::<Vec<_>>()))
        };
        vec![
            site.to_string(),
            name.to_owned(),
            figure(|d| d.ce_increase),
            figure(|d| d.cross_entropy.ce_score),
            figure(|d| d.explained_variance),
        ]
    };
    let sites = result.config.sites.iter();
    let rows =
        sites.flat_map(|&site| ["original", "fresh", "fresh-on-twin"].map(|name| row(site, name)));
    FigureTable {
        heading: "Site by site".to_owned(),
        columns: names(&[
            "Site",
            "Dictionary",
            "Cross-entropy increase (nats)",
            "Cross-entropy score",
            "Explained variance",
        ]),
        names: 2,
        rows: rows.collect(),
    }
}

fn charts(seed: &GrownSeed) -> [LineChart; 2] {
    let points = |curve: &[GrowPoint], value: fn(&GrowPoint) -> f64| -> Vec<(f64, f64)> {
        curve.iter().map(|p| (p.step as f64, value(p))).collect()
    };
    let of = |id: &str, title: &str, description: &str, y_name: &str| LineChart {
        caption: Caption::new(
            &format!("{id}-{}", seed.seed),
            &format!("{title}, seed {}", seed.seed),
            description,
        ),
        x_name: "steps".to_owned(),
        y_name: y_name.to_owned(),
        ..LineChart::default()
    };
    let mut losses = of(
        "held-out",
        "Held-out cross-entropy",
        "The model that grew with dictionaries and its twin.",
        "nats a token",
    );
    losses.series = vec![
        Series::new("co-trained", &points(&seed.co_trained, |p| p.held_out)),
        Series::new("twin", &points(&seed.twin, |p| p.held_out)),
    ];
    let mut unexplained = of(
        "unexplained",
        "Unexplained variance",
        "Of the dictionaries while they grow, the mean over sites.",
        "share",
    );
    unexplained.log_y = true;
    unexplained.series = vec![Series::new(
        "original",
        &points(&seed.co_trained, |p| {
            p.unexplained.iter().sum::<f64>() / p.unexplained.len() as f64
        }),
    )];
    [losses, unexplained]
}
