//! The part that the plots with two axes share: margins, grid, ticks and axis names.

use maud::{Markup, html};

use super::{Caption, Scale, px, scale::Tick, text_width};

/// The drawing area between the axes.
pub(super) struct Frame {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
}

/// What a frame needs to know.
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Rows of text above the drawing area.
    pub(super) rows_above: f64,
    /// Pixels kept free between the drawing area and the tick labels below it.
    pub(super) lane: f64,
}

impl Frame {
    pub(super) fn new(layout: &Layout, x: Scale, y: Scale) -> Self {
        let top = 10.0 + 17.0 * layout.rows_above;
        let bottom = layout.height - 40.0 - layout.lane;
        let y_target = ((bottom - top) / 48.0).round().clamp(3.0, 7.0) as usize;
        let y_ticks = y.ticks(y_target);
        let left = 12.0
            + y_ticks
                .iter()
                .map(|t| text_width(&t.label))
                .fold(14.0, f64::max);
        let right = layout.width - 14.0;
        let x_ticks = fitting_ticks(&x, right - left);
        Self {
            width: layout.width,
            height: layout.height,
            left,
            right,
            top,
            bottom,
            x: x.onto(left, right),
            y: y.onto(bottom, top),
            x_ticks,
            y_ticks,
        }
    }

    /// The whole drawing: grid and names behind, the content before them.
    pub(super) fn draw(
        &self,
        caption: &Caption,
        x_name: &str,
        y_name: &str,
        lane: f64,
        content: Markup,
    ) -> Markup {
        svg(
            caption,
            self.width,
            self.height,
            html! {
                g.grid {
                    @for tick in &self.y_ticks {
                        line x1=(px(self.left)) x2=(px(self.right)) y1=(px(self.y.at(tick.value))) y2=(px(self.y.at(tick.value))) {}
                    }
                }
                g.axis {
                    line x1=(px(self.left)) x2=(px(self.right)) y1=(px(self.bottom)) y2=(px(self.bottom)) {}
                    @for tick in &self.x_ticks {
                        line x1=(px(self.x.at(tick.value))) x2=(px(self.x.at(tick.value)))
                            y1=(px(self.bottom + lane)) y2=(px(self.bottom + lane + 4.0)) {}
                    }
                }
                (content)
                g.ticks {
                    @for tick in &self.y_ticks {
                        text x=(px(self.left - 6.0)) y=(px(self.y.at(tick.value) + 4.0)) text-anchor="end" { (tick.label) }
                    }
                    @for tick in &self.x_ticks {
                        text x=(px(self.x.at(tick.value))) y=(px(self.bottom + lane + 17.0)) text-anchor="middle" { (tick.label) }
                    }
                }
                text.axis-name x="2" y=(px(self.top - 10.0)) { (y_name) }
                text.axis-name x=(px(self.right)) y=(px(self.height - 6.0)) text-anchor="end" { (x_name) }
            },
        )
    }
}

/// As many ticks as stand side by side without touching.
fn fitting_ticks(scale: &Scale, room: f64) -> Vec<Tick> {
    for target in [7, 6, 5, 4, 3, 2] {
        let ticks = scale.ticks(target);
        let needed: f64 = ticks.iter().map(|t| text_width(&t.label) + 14.0).sum();
        if needed <= room {
            return ticks;
        }
    }
    Vec::new()
}

/// The outer element with what screen readers say.
pub(super) fn svg(caption: &Caption, width: f64, height: f64, content: Markup) -> Markup {
    let title_id = format!("{}-title", caption.id);
    let description_id = format!("{}-desc", caption.id);
    html! {
        svg role="img" viewBox={ "0 0 " (px(width)) " " (px(height)) } width=(px(width)) height=(px(height))
            aria-labelledby={ (title_id) " " (description_id) } {
            title id=(title_id) { (caption.title) }
            desc id=(description_id) { (caption.description) }
            (content)
        }
    }
}
