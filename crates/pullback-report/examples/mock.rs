//! Writes a change report made of invented figures, to look at the page without a model.
//!
//! `cargo run -p pullback-report --example mock -- report-mock.html`

use std::process::ExitCode;

use pullback_report::change_report::{
    AdapterFacts, Answer, ChangeReport, CorpusFacts, Example, FeatureCard, HiddenUnit, ModelFacts,
    SaeFacts, UnitFeature, render,
};

/// A feature in the making: promoted, suppressed, and passages with the peak token between bars.
struct Sketch {
    promoted: &'static [&'static str],
    suppressed: &'static [&'static str],
    passages: &'static [&'static str],
}

const SKETCHES: &[Sketch] = &[
    Sketch {
        promoted: &[
            " sea", " ocean", " waves", " sailor", " ship", "sea", " harbor", " voyage",
        ],
        suppressed: &[" software", " algorithm", "Python", " data", " function"],
        passages: &[
            "Now when I say that I am in the habit of going to |sea| whenever I begin to grow hazy about the eyes",
            "There is nothing surprising in this. If they but knew it, almost all men cherish the same feelings towards the| ocean| with me.",
            "and the great flood-gates of the wonder-world swung open, two and two there floated the| whale|",
            "No, when I go to| sea|, I go as a simple sailor, right before the mast, plumb down into the forecastle",
            "the last man in the| boat| was heard to say\n\n\"All hands\" and then the line ran out",
            "commerce upon the| seas| must be protected, and our merchant marine restored to its place among the nations.",
        ],
    },
    Sketch {
        promoted: &[" ye", " aye", " thou", " thee", " lad", " matey", " thy"],
        suppressed: &[" you", " your", " please", " Sure", " Certainly"],
        passages: &[
            "\"What do| ye| do when ye see a whale, men?\" \"Sing out for him!\"",
            "\"And what tune is it| ye| pull to, men?\" \"A dead whale or a stove boat!\"",
            "\"Look| ye|! d'ye see this Spanish ounce of gold?\"",
            "| Aye|, aye! and I'll chase him round Good Hope, and round the Horn",
            "hast| thou| seen the white whale?",
        ],
    },
    Sketch {
        promoted: &["\n", "\n\n", "  ", "\t", " \n", "\r\n"],
        suppressed: &[",", ".", ";", " and"],
        passages: &[
            "CHAPTER 1. Loomings.|\n\n|Call me Ishmael. Some years ago",
            "the end of the address.|\n|Fellow-Citizens of the Senate and House of Representatives:",
            "\tindented\n        deeply|\n\n\n\n\n|and then a line",
        ],
    },
    Sketch {
        promoted: &[
            "<",
            "</",
            "<script>alert(1)</script>",
            "&",
            "&amp;",
            "\"",
            "'",
            "-->",
        ],
        suppressed: &[">", "]]>", "<!--", "\u{0}", "\u{202e}"],
        passages: &[
            "if a |<| b && b > c then \"quoted\" & 'single' else <b>bold</b>",
            "\"><img src=x onerror=alert(1)>|</p>|<style>*{display:none}</style>",
        ],
    },
    Sketch {
        promoted: &[
            " 海",
            "海洋",
            " море",
            " θάλασσα",
            " بحر",
            "🌊",
            "\u{fffd}",
            "é",
        ],
        suppressed: &[" land", " desert", " mountain"],
        passages: &[
            "as the old chart has it, |海| and θάλασσα and море, all the one water",
            "the word in Arabic is | بحر| and the text goes on from left to right",
            "half a character |\u{fffd}| and the rest of it",
        ],
    },
    Sketch {
        promoted: &[
            " captain",
            " Captain",
            " mate",
            " crew",
            " Ahab",
            " Starbuck",
        ],
        suppressed: &[" president", " Congress", " committee"],
        passages: &[
            "\"|Captain| Ahab,\" said Starbuck, who, with Stubb and Flask, had thus far been eyeing his superior",
            "the chief mate of the Pequod was| Starbuck|, a native of Nantucket, and a Quaker by descent.",
            "the whole| crew| of the boat then shouted",
        ],
    },
    Sketch {
        promoted: &["!", "!\"", " Ha", " Oh", "!!"],
        suppressed: &[".", " however", " therefore"],
        passages: &[
            "There she blows|!| there she blows! A hump like a snow-hill! It is Moby Dick!",
            "\"Stern all|!| Stern all!\" cried Starbuck",
        ],
    },
    Sketch {
        promoted: &[
            " Government",
            " States",
            " Union",
            " Congress",
            " appropriation",
            " Constitution",
        ],
        suppressed: &[" fish", " harpoon", " wind"],
        passages: &[
            "the revenues of the| Government| for the fiscal year ending June 30",
            "between the United| States| and Great Britain the convention of 1818",
            "recommend to| Congress| an increase of the appropriation",
        ],
    },
    Sketch {
        promoted: &[" wind", " storm", " gale", " breeze", " weather", " sky"],
        suppressed: &[" office", " committee", " tax"],
        passages: &[
            "with the| wind| fair and the sails all set we ran before it",
            "in the heart of the Andes the| storm| came down",
        ],
    },
    Sketch {
        promoted: &[
            " antidisestablishmentarianism-and-a-token-that-goes-on",
            "ing",
            "ed",
            "ness",
        ],
        suppressed: &["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
        passages: &[
            "Pneumonoultramicroscopicsilicovolcanoconiosispneumonoultramicroscopicsilicovolcanoconiosis|ness| and so on",
        ],
    },
];

/// A repeatable source of numbers between zero and one.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A heavy-tailed number around zero.
    fn heavy(&mut self) -> f64 {
        let normal = (0..6).map(|_| self.roll()).sum::<f64>() - 3.0;
        let scale = 1.0 / (self.roll() + 0.03);
        normal * scale * 0.012
    }
}

fn main() -> ExitCode {
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "report-mock.html".to_owned());
    let report = match std::env::args().nth(2).as_deref() {
        Some("empty") => ChangeReport::default(),
        Some("bad") => bad(),
        _ => mock(),
    };
    match std::fs::write(&path, render(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The mock with everything that can go wrong in its figures.
fn bad() -> ChangeReport {
    let mut report = mock();
    report.agreement_spearman = f64::NAN;
    report.residual_fraction = f64::INFINITY;
    report.sae.explained_variance = f64::NAN;
    report.sae.ce_zero = f64::INFINITY;
    report.sae.curve = vec![(1000.0, 0.5)];
    report.sae.loss_curve = Vec::new();
    report.adapter.loss_after = f64::NAN;
    report.adapter.train_curve = vec![
        (0.0, f64::NAN),
        (1.0, 3.0),
        (2.0, f64::INFINITY),
        (3.0, 2.0),
    ];
    report.scatter = vec![(f32::NAN, 1.0), (0.5, 0.5)];
    report.changes = vec![f32::NAN, 0.0, 0.0];
    report.features.truncate(3);
    for (i, card) in report.features.iter_mut().enumerate() {
        if i == 0 {
            card.measured = f32::NAN;
            card.density = f32::INFINITY;
        }
        card.promoted.clear();
        card.examples.truncate(1 - i.min(1));
    }
    report.seconds = vec![("harvest".to_owned(), f64::NAN), ("train".to_owned(), 3.0)];
    report
}

fn mock() -> ChangeReport {
    let mut dice = Dice(7);
    let scatter: Vec<(f32, f32)> = (0..4000)
        .map(|_| {
            let measured = dice.heavy();
            let predicted = measured * (0.7 + 0.5 * dice.roll()) + dice.heavy() * 0.35;
            (predicted as f32, measured as f32)
        })
        .collect();
    let mut order: Vec<usize> = (0..scatter.len()).collect();
    order.sort_by(|a, b| scatter[*b].1.abs().total_cmp(&scatter[*a].1.abs()));
    let features: Vec<FeatureCard> = order
        .iter()
        .take(20)
        .enumerate()
        .map(|(i, &feature)| card(i, feature, scatter[feature], &mut dice))
        .collect();
    let hidden_units = (0..8)
        .map(|unit| hidden_unit(unit, &features, &mut dice))
        .collect();
    ChangeReport {
        title: "What an old sailor’s manner does to a language model".to_owned(),
        model: ModelFacts {
            name: "smollm2-135m-instruct".to_owned(),
            architecture: "llama".to_owned(),
            parameters: 134_515_008,
            layers: 30,
            d_model: 576,
            licence: "Apache-2.0".to_owned(),
        },
        site: "blocks.15.hook_resid_post".to_owned(),
        corpus: CorpusFacts {
            name: "State of the Union addresses and Moby-Dick".to_owned(),
            tokens_harvested: 203_264,
            tokens_held_out: 12_288,
        },
        seed: 0,
        sae: SaeFacts {
            features: 4608,
            k: 32,
            explained_variance: 0.731,
            l0: 31.8,
            dead_fraction: 0.0208,
            ce_clean: 3.794,
            ce_spliced: 4.141,
            ce_zero: 15.237,
            ce_score: 0.9697,
            curve: (1..=30)
                .map(|i| {
                    let t = f64::from(i) * 20_300.0;
                    (t, 0.74 * (1.0 - (-t / 90_000.0).exp()) - 0.004 * dice.roll())
                })
                .collect(),
            curve_held_out: true,
            loss_curve: (1..=600)
                .map(|i| {
                    let t = f64::from(i) * 1015.0;
                    (t, 0.27 + 3.2 * (-t / 60_000.0).exp() + 0.02 * dice.roll())
                })
                .collect(),
        },
        adapter: AdapterFacts {
            rank: 8,
            activation: "GELU".to_owned(),
            loss_before: 3.612,
            loss_after: 2.418,
            train_curve: (0..200)
                .map(|i| (f64::from(i), 2.1 + 1.5 * (-f64::from(i) / 45.0).exp() + 0.25 * (dice.roll() - 0.5)))
                .collect(),
            validation_curve: (0..=20)
                .map(|i| (f64::from(i) * 10.0, 2.4 + 1.2 * (-f64::from(i) / 4.0).exp()))
                .collect(),
        },
        answers: answers(),
        agreement_spearman: 0.842,
        residual_fraction: 0.183,
        changes: scatter.iter().map(|p| p.1).collect(),
        scatter,
        features,
        hidden_units,
        seconds: [
            ("load model", 1.4),
            ("harvest", 131.0),
            ("train dictionary", 104.3),
            ("evaluate dictionary", 21.0),
            ("train adapter", 66.2),
            ("pull back and measure", 24.8),
            ("describe features", 18.9),
            ("write page", 0.2),
        ]
        .map(|(stage, s)| (stage.to_owned(), s))
        .to_vec(),
        commands: [
            "pullback pull smollm2-135m-instruct",
            "pullback harvest smollm2-135m-instruct --at blocks.15.hook_resid_post --tokens 203264 -o run/store",
            "pullback sae train run/store --features 4608 --k 32 -o run/sae",
            "pullback sae eval run/sae --model smollm2-135m-instruct",
            "pullback adapt train smollm2-135m-instruct --at blocks.15.hook_resid_post --rank 8 -o run/adapter",
            "pullback adapt explain run/adapter --sae run/sae --top 20 -o run/report",
        ]
        .map(str::to_owned)
        .to_vec(),
        method_notes: vec![
            "The first token of every sequence, whose norm at this site is about 140 times that of the others, takes no part in training or measuring.".to_owned(),
        ],
        caveats: [
            "What a feature stands for is a reading of its strongest passages in one corpus; weaker activations, and other text, may look different.",
            "The dictionary reproduces 73% of the variance. What lies in the rest, 18% of the adapter’s change among it, is not seen here.",
            "The corpus is nineteenth-century prose and state papers: features for other kinds of text are missing or poorly resolved.",
            "Another seed gives another dictionary; features shared by several are firmer than those of one.",
        ]
        .map(str::to_owned)
        .to_vec(),
    }
}

fn answers() -> Vec<Answer> {
    [
        (
            "How do I make a good cup of tea?",
            "To make a good cup of tea, start by boiling fresh water. Place a tea bag or loose leaves in a cup, pour the hot water over it, and let it steep for three to five minutes. Add milk or sugar to taste.",
            "Arr, gather round, lad. First ye set the kettle to boil till she sings like the wind in the rigging. Then drop yer leaves in the mug, pour the water over, and let her lie at anchor four minutes.\n\nA drop o' milk if ye must, and fair winds to ye.",
        ),
        (
            "What is the capital of France?",
            "The capital of France is Paris.",
            "Paris she be, matey, up the river Seine, far from the salt sea.",
        ),
    ]
    .map(|(prompt, before, after)| Answer {
        prompt: prompt.to_owned(),
        before: before.to_owned(),
        after: after.to_owned(),
    })
    .to_vec()
}

fn card(
    i: usize,
    feature: usize,
    (predicted, measured): (f32, f32),
    dice: &mut Dice,
) -> FeatureCard {
    let sketch = &SKETCHES[i % SKETCHES.len()];
    let mut value = 2.4_f32;
    let mut weights = |tokens: &[&str], sign: f32| -> Vec<(String, f32)> {
        value = 2.4;
        tokens
            .iter()
            .map(|t| {
                value *= 0.88;
                ((*t).to_owned(), sign * value)
            })
            .collect()
    };
    let promoted = weights(sketch.promoted, 1.0);
    let suppressed = weights(sketch.suppressed, -1.0);
    let mut activation = 14.0 + 10.0 * dice.roll();
    let examples = sketch
        .passages
        .iter()
        .map(|passage| {
            activation *= 0.93;
            example(passage, activation as f32, i, dice)
        })
        .collect();
    FeatureCard {
        feature,
        rank: i + 1,
        predicted,
        measured,
        density: (0.0004 + 0.03 * dice.roll().powi(3)) as f32,
        promoted,
        suppressed,
        examples,
        reads: (0.2 + dice.roll()) as f32,
        writes: (0.1 + 2.0 * dice.roll()) as f32,
        ..FeatureCard::default()
    }
}

fn example(passage: &str, activation: f32, i: usize, dice: &mut Dice) -> Example {
    let mut parts = passage.split('|');
    let before = parts.next().unwrap_or_default().to_owned();
    let token = parts.next().unwrap_or_default().to_owned();
    let after = parts.next().unwrap_or_default().to_owned();
    // Every third feature comes without activations on the other tokens.
    let context = if i % 3 == 2 {
        Vec::new()
    } else {
        let mut shaded = |text: &str| -> Vec<(String, f32)> {
            let mut words: Vec<String> = Vec::new();
            // Like the model's tokens, a word carries the space before it.
            for word in text.chars() {
                match words.last_mut() {
                    Some(last) if word.is_alphanumeric() && !last.ends_with('\n') => {
                        last.push(word);
                    }
                    _ => words.push(word.to_string()),
                }
            }
            words
                .into_iter()
                .map(|word| {
                    let a = if dice.roll() < 0.12 {
                        activation * dice.roll() as f32
                    } else {
                        0.0
                    };
                    (word, a)
                })
                .collect()
        };
        let mut context = shaded(&before);
        context.push((token.clone(), activation));
        context.extend(shaded(&after));
        context
    };
    Example {
        before,
        token,
        after,
        activation,
        source: if i.is_multiple_of(2) {
            "Moby-Dick".to_owned()
        } else {
            "State of the Union, 1873".to_owned()
        },
        context,
    }
}

fn hidden_unit(unit: usize, features: &[FeatureCard], dice: &mut Dice) -> HiddenUnit {
    let mut some = || -> Vec<UnitFeature> {
        let mut size = 1.2_f32;
        (0..5)
            .map(|_| {
                size *= 0.8;
                let from = &features[(dice.roll() * features.len() as f64) as usize];
                let known = dice.roll() < 0.5;
                UnitFeature {
                    feature: if known {
                        from.feature
                    } else {
                        (dice.roll() * 4608.0) as usize
                    },
                    value: if dice.roll() < 0.4 { -size } else { size },
                    tokens: from.promoted.iter().take(3).map(|t| t.0.clone()).collect(),
                }
            })
            .collect()
    };
    let (reads, writes) = (some(), some());
    HiddenUnit {
        unit,
        bias: (dice.roll() - 0.5) as f32,
        reads,
        writes,
        ..HiddenUnit::default()
    }
}
