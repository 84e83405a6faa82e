//! `pullback chain qca`: the report card of an automaton.

use std::path::PathBuf;

use pullback_artifact::{write_atomic, write_json};
use pullback_chain::{AUTOMATA, Card, GATES, Hamiltonian, Mpu, Named, Qca, Scheme, card};
use pullback_report::chain::{ChainPage, Curves, Table, Tile, render, tile_figure};
use pullback_report::number::{count, significant};
use pullback_report::plot::{Caption, Colours, Field, Series};
use serde_json::json;

use super::SiteOptions;
use crate::context::App;

/// Options of `chain qca`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pullback chain qca --gate swap\n  pullback chain qca --gate \"exp(-i*0.3*(XX+YY))\" -o card.html\n  \
    pullback chain qca --hamiltonian heisenberg --scheme leapfrog2 --dt 0.3\n\
    A GATE is a name, a .npy file ([d², d²] or [d, d, d, d]) or an expression; one step is the gate on even bonds, then on \
    odd bonds. `pullback chain qca --list` shows the names."
)]
pub(crate) struct Arguments {
    /// The gate or automaton
    #[arg(long, allow_hyphen_values = true, required_unless_present_any = ["hamiltonian", "mpu", "list"], conflicts_with_all = ["hamiltonian", "mpu"])]
    gate: Option<String>,
    /// One Trotter step of a Hamiltonian in place of a gate
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "H",
        conflicts_with = "mpu"
    )]
    hamiltonian: Option<String>,
    /// The Trotter scheme
    #[arg(long, default_value = "first")]
    scheme: String,
    /// The Trotter step
    #[arg(long, default_value_t = 0.1)]
    dt: f64,
    /// A matrix-product unitary: a .npy file [bond, bond, d, d] (left, right, out, in); only its unitarity and index
    #[arg(long, value_name = "FILE.npy")]
    mpu: Option<PathBuf>,
    /// Names of gates, automata and models
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    site: SiteOptions,
    /// Sites on which densities of conserved charges may act
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=4))]
    range: u8,
    /// Write a page as well, and the card as JSON beside it
    #[arg(long, short, value_name = "PAGE.html")]
    output: Option<PathBuf>,
    /// Replace the page if it is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(app: &App, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        return list(app);
    }
    if let (Some(path), false) = (&arguments.output, arguments.force) {
        pullback_artifact::refuse_existing(path)?;
        pullback_artifact::refuse_existing(&path.with_extension("json"))?;
    }
    if let Some(path) = &arguments.mpu {
        let mpu = Mpu::from_file(path)?;
        let defect = mpu.check_unitary(&path.display().to_string())?;
        let index = mpu.index_by_ranks()?;
        let (bond, dimension) = (mpu.bond(), mpu.dimension());
        let result = json!({ "unitary": true, "unitarity_defect": defect, "index": index, "bond": bond, "dimension": dimension });
        return app.print(&result, || {
            format!("unitary (off by {defect:.1e}), index {index:.6} bits\n")
        });
    }
    let site = arguments.site.site()?;
    let qca = match (&arguments.gate, &arguments.hamiltonian) {
        (_, Some(h)) => Qca::trotter(
            &Hamiltonian::parse(h, site)?,
            &Scheme::parse(&arguments.scheme)?,
            arguments.dt,
        )?,
        (gate, None) => Qca::parse(gate.as_deref().unwrap_or_default(), site)?,
    };
    let card = card(&qca, usize::from(arguments.range), &app.control)?;
    if let Some(path) = &arguments.output {
        write_atomic(path, render(&page(&card)).as_bytes())?;
        write_json(&path.with_extension("json"), &card)?;
    }
    app.print(&card, || describe(&card, arguments))
}

fn list(app: &App) -> anyhow::Result<()> {
    let tables = [
        ("automata", AUTOMATA),
        ("gates", GATES),
        ("models", pullback_chain::MODELS),
    ];
    let entry = |named: &Named| json!({ "name": named.name, "signature": named.signature(), "about": named.about });
    let value: serde_json::Map<String, serde_json::Value> = tables
        .iter()
        .map(|(name, table)| ((*name).to_owned(), table.iter().map(entry).collect()))
        .collect();
    app.print(&value, || {
        let mut text = String::new();
        for (name, table) in tables {
            text += &format!("{name}\n");
            for named in table {
                text += &format!("  {:44} {}\n", named.signature(), named.about);
            }
        }
        text
    })
}

/// What it does to Pauli operators, in words.
fn clifford(card: &Card) -> String {
    match &card.clifford_class {
        None => "no".to_owned(),
        Some(class) => match class.period {
            Some(period) => format!("{} (period {period})", class.class),
            None if class.speeds.is_empty() => class.class.clone(),
            None => {
                let speeds: Vec<String> = class
                    .speeds
                    .iter()
                    .map(|speed| significant(*speed, 3))
                    .collect();
                format!("{} (sites a step: {})", class.class, speeds.join(", "))
            }
        },
    }
}

fn rays(card: &Card) -> String {
    match card.dual.as_ref().and_then(|dual| dual.rays.as_ref()) {
        Some(rays) => rays.class.clone(),
        None => match &card.dual {
            Some(dual) => format!("no, off by {}", significant(dual.defect, 3)),
            None => "not asked: no brickwork of one gate".to_owned(),
        },
    }
}

fn describe(card: &Card, arguments: &Arguments) -> String {
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| significant(x, 6));
    let charges: Vec<String> = card
        .charges
        .iter()
        .map(|(range, n)| format!("{n} up to range {range}"))
        .collect();
    let velocity = card.spread.as_ref().map_or_else(
        || "-".to_owned(),
        |s| {
            format!(
                "{} left, {} right",
                significant(s.velocity_left, 3),
                significant(s.velocity_right, 3)
            )
        },
    );
    let fermions = card.dispersion.as_ref().map_or_else(
        || "no".to_owned(),
        |d| format!("yes, fastest {} sites a step", significant(d.velocity, 4)),
    );
    let lines = [
        ("automaton", card.name.clone()),
        (
            "unitary",
            format!("yes, off by {:.1e}", card.unitarity_defect),
        ),
        (
            "index",
            format!(
                "{} bits (by entropies {})",
                significant(card.index, 6),
                number(card.index_by_entropies)
            ),
        ),
        (
            "light cone",
            format!(
                "{} left, {} right, sites a step; supports {:?}",
                card.light_cone.left, card.light_cone.right, card.light_cone.support
            ),
        ),
        ("measured front", velocity),
        ("entangling power", number(card.entangling_power)),
        ("dual unitary", rays(card)),
        ("Clifford", clifford(card)),
        ("charges", charges.join(", ")),
        ("free fermions", fermions),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        text += &format!("{name:18} {value}\n");
    }
    if let Some(path) = &arguments.output {
        text += &format!(
            "{}\n{}\n",
            path.display(),
            path.with_extension("json").display()
        );
    }
    text
}

fn page(card: &Card) -> ChainPage {
    let yes = |x: bool| if x { "yes" } else { "no" };
    let mut tiles = vec![
        Tile::new(
            "Index",
            tile_figure(card.index),
            "bits that flow to the right in a step",
        ),
        Tile::new(
            "Light cone",
            format!("{} | {}", card.light_cone.left, card.light_cone.right),
            "sites a step to the left and to the right",
        ),
        Tile::new("Dual unitary", yes(card.dual_unitary), rays(card)),
        Tile::new("Clifford", yes(card.clifford), clifford(card)),
        Tile::new(
            "Charges",
            count(card.charges.values().copied().max().unwrap_or(0) as u64),
            format!("with densities on up to {} sites", card.charges.len()),
        ),
        Tile::new(
            "Free fermions",
            yes(card.free_fermion),
            card.dispersion.as_ref().map_or_else(String::new, |d| {
                format!("fastest {} sites a step", significant(d.velocity, 4))
            }),
        ),
    ];
    if let Some(power) = card.entangling_power {
        tiles.push(Tile::new(
            "Entangling power",
            significant(power, 4),
            "mean linear entropy that the gate gives to product states",
        ));
    }
    ChainPage {
        title: format!("Card of {}", card.name),
        subtitle: format!(
            "A cellular automaton on sites of {} states, unitary to {:.1e}",
            card.dimension, card.unitarity_defect
        ),
        tiles,
        fields: card
            .spread
            .iter()
            .map(|spread| picture(card, spread))
            .collect(),
        curves: curves(card),
        tables: tables(card),
        notes: notes(card),
    }
}

fn picture(card: &Card, spread: &pullback_chain::card::Spread) -> Field {
    let steps = spread.weight.len().saturating_sub(1) as f64;
    let first = -(spread.source as i64);
    let sites = spread.weight.first().map_or(0, Vec::len) as f64;
    // The cone is drawn as far as the picture goes.
    let cone = |velocity: f64| {
        let room = if velocity > 0.0 {
            sites - spread.source as f64
        } else {
            spread.source as f64 + 1.0
        };
        let until = if velocity == 0.0 {
            steps
        } else {
            steps.min(room / velocity.abs())
        };
        ((0.0, 0.0), (velocity * until, until))
    };
    Field {
        caption: Caption::new(
            "spreading",
            "A spreading operator",
            "The share of the operator's products that act on each site, step by step, with the light cone.",
        ),
        rows: spread.weight.clone(),
        times: (0.0, steps),
        time_name: "steps".to_owned(),
        first_place: first,
        place_name: "sites from where it began".to_owned(),
        colours: Colours::From0To(1.0),
        value_name: format!("weight of {} there", spread.operator),
        lines: vec![cone(card.light_cone.right), cone(-card.light_cone.left)],
    }
}

fn curves(card: &Card) -> Vec<Curves> {
    let mut out = Vec::new();
    if let Some(dispersion) = &card.dispersion {
        let band = |n: usize| -> Vec<(f64, f64)> {
            dispersion
                .momentum
                .iter()
                .zip(&dispersion.energies)
                .filter_map(|(k, e)| Some((*k, *e.get(n)?)))
                .collect()
        };
        out.push(Curves {
            caption: Caption::new(
                "dispersion",
                "Quasi-energies of the fermions",
                "The highest and the lowest band over the momentum of a cell of two sites.",
            ),
            x_name: "momentum of a cell".to_owned(),
            y_name: "quasi-energy".to_owned(),
            series: vec![
                Series::new("highest", &band(3)),
                Series::new("lowest", &band(0)),
            ],
        });
    }
    if let Some(spectrum) = &card.operator_schmidt {
        let points: Vec<(f64, f64)> = (1..)
            .zip(spectrum)
            .map(|(n, p)| (f64::from(n), *p))
            .collect();
        out.push(Curves {
            caption: Caption::new(
                "schmidt",
                "Operator Schmidt spectrum",
                "The weights of the gate as a sum of products, largest first.",
            ),
            x_name: "number".to_owned(),
            y_name: "weight".to_owned(),
            series: vec![Series::new("weight", &points)],
        });
    }
    out
}

fn tables(card: &Card) -> Vec<Table> {
    let details = &card.charge_details;
    let mut out = Vec::new();
    let densities = details.densities.iter().take(40).map(|terms| {
        let parts: Vec<String> = terms
            .iter()
            .take(6)
            .map(|t| {
                format!(
                    "{} {} ({})",
                    significant(t.coefficient, 3),
                    t.operators,
                    if t.even { "even" } else { "odd" }
                )
            })
            .collect();
        let more = if terms.len() > 6 {
            format!(" and {} more terms", terms.len() - 6)
        } else {
            String::new()
        };
        vec![parts.join(", ") + &more]
    });
    out.push(Table {
        heading: "Conserved charges".to_owned(),
        columns: vec!["density: coefficient, operators, sublattice it begins on".to_owned()],
        rows: densities.collect(),
    });
    let momenta = details.by_momentum.iter().enumerate().map(|(m, counts)| {
        let mut row = vec![format!("{m}/8 · 2π")];
        row.extend(counts.iter().map(usize::to_string));
        row
    });
    let mut columns = vec!["momentum of a cell".to_owned()];
    columns.extend(card.charges.keys().map(|range| format!("range {range}")));
    out.push(Table {
        heading: "Charges by momentum".to_owned(),
        columns,
        rows: momenta.collect(),
    });
    if let Some(rays) = card.dual.as_ref().and_then(|dual| dual.rays.as_ref()) {
        let row = |name: &str, moduli: &[f64]| {
            let mut row = vec![name.to_owned()];
            row.extend(moduli.iter().take(4).map(|x| significant(*x, 5)));
            row
        };
        out.push(Table {
            heading: "Correlations on the light rays".to_owned(),
            columns: ["ray", "largest factor", "second", "third", "fourth"]
                .map(str::to_owned)
                .to_vec(),
            rows: vec![row("right", &rays.right), row("left", &rays.left)],
        });
    }
    out
}

fn notes(card: &Card) -> Vec<String> {
    let mut notes = vec![
        "One step is the gate on all even bonds, then on all odd bonds. Operators move forward in time, O → U O U†.".to_owned(),
        "The index is found by ranks and by mutual informations between inputs and outputs of a ring of six sites, part by part.".to_owned(),
        "Charges are sums of densities that repeat every two sites; a charge is counted at the smallest range at which it is found, and at \
         momentum zero unless said otherwise."
            .to_owned(),
    ];
    if let Some(spread) = &card.spread {
        notes.push(if spread.exact {
            "The picture is exact: Pauli operators stay Pauli operators.".to_owned()
        } else {
            format!(
                "The picture is a mean over one random state; its weights are off by about {}.",
                significant(spread.error, 2)
            )
        });
        notes.push(format!(
            "The measured front is where the weight reaches a quarter of its scrambled value: {} sites a step to the left, {} to the right.",
            significant(spread.velocity_left, 3),
            significant(spread.velocity_right, 3)
        ));
    }
    if let Some(rays) = card.dual.as_ref().and_then(|dual| dual.rays.as_ref()) {
        notes.push(format!(
            "Powers of the ray maps and operators followed step by step differ by at most {:.1e} over {} steps; off the rays at most {:.1e} was found.",
            rays.direct_difference, rays.steps, rays.off_rays
        ));
    }
    notes
}
