//! Progress and interruption of long work.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::error::ArtifactError;

/// The user asked to stop; what was done so far is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; the same command goes on from here")]
pub struct Interrupted;

/// What long work needs from its caller: somewhere to show progress, and a flag that asks it to stop.
///
/// Clones share both. Work calls [`Control::check`] wherever it can stop without loss.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

struct Shared {
    interrupted: AtomicBool,
    handles_ctrl_c: AtomicBool,
    output: Output,
}

enum Output {
    Hidden,
    Bars(MultiProgress),
    Lines {
        writer: Mutex<Box<dyn Write + Send>>,
        every: Duration,
    },
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = match self.shared.output {
            Output::Hidden => "hidden",
            Output::Bars(_) => "bars",
            Output::Lines { .. } => "lines",
        };
        f.debug_struct("Control")
            .field("output", &output)
            .field("interrupted", &self.is_interrupted())
            .finish()
    }
}

impl Control {
    fn new(output: Output) -> Self {
        let shared = Shared {
            interrupted: AtomicBool::new(false),
            handles_ctrl_c: AtomicBool::new(false),
            output,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Shows nothing: for tests and `--quiet`.
    pub fn hidden() -> Self {
        Self::new(Output::Hidden)
    }

    /// Shows progress on standard error: bars on a terminal, otherwise a plain line now and then.
    pub fn terminal() -> Self {
        if std::io::stderr().is_terminal() {
            Self::new(Output::Bars(MultiProgress::new()))
        } else {
            Self::lines(Box::new(std::io::stderr()), Duration::from_secs(10))
        }
    }

    /// Writes plain lines: for each stage one at its start, one about every `every`, and one at its end.
    pub fn lines(writer: Box<dyn Write + Send>, every: Duration) -> Self {
        Self::new(Output::Lines {
            writer: Mutex::new(writer),
            every,
        })
    }

    /// Lets Ctrl-C (and the signals to terminate and to hang up) interrupt this control: the first sets the flag and says
    /// so, the second ends the program at once with status 130. To be called once in a program; calling it again on the
    /// same control does nothing.
    ///
    /// # Errors
    /// When the system refuses the handler, or another control has it already.
    pub fn handle_ctrl_c(&self) -> Result<(), ArtifactError> {
        if self.shared.handles_ctrl_c.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let control = self.clone();
        ctrlc::set_handler(move || control.on_signal()).map_err(|error| {
            self.shared.handles_ctrl_c.store(false, Ordering::SeqCst);
            ArtifactError::Signal {
                reason: error.to_string(),
            }
        })
    }

    fn on_signal(&self) {
        if self.is_interrupted() {
            // The second Ctrl-C asks for just this.
            std::process::exit(130);
        }
        let line = "stopping at the next safe point; the same command goes on from there (Ctrl-C again: stop at once)";
        match self.shared.output {
            Output::Hidden => write_line(&mut std::io::stderr(), line),
            _ => self.say(line),
        }
        // Said first: once the flag is set, the program may be gone before another line.
        self.interrupt();
    }

    /// Asks the work to stop at its next safe point.
    pub fn interrupt(&self) {
        self.shared.interrupted.store(true, Ordering::SeqCst);
    }

    /// Whether the work was asked to stop.
    pub fn is_interrupted(&self) -> bool {
        self.shared.interrupted.load(Ordering::SeqCst)
    }

    /// Fails when the work was asked to stop.
    ///
    /// # Errors
    /// [`Interrupted`], when it was.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_interrupted() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Begins a stage of `total` units (0: not known) and shows its progress. The unit `bytes` is shown as kB, MB, GB.
    pub fn stage(&self, name: &str, total: u64, unit: &str) -> Stage {
        let now = Instant::now();
        let progress = Arc::new(Progress {
            name: name.to_owned(),
            unit: unit.to_owned(),
            total: AtomicU64::new(total),
            position: AtomicU64::new(0),
            clock: Mutex::new(Clock {
                base: 0,
                started: now,
                last_line: now,
            }),
            message: Mutex::new(String::new()),
        });
        let bar = match &self.shared.output {
            Output::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total.max(1)));
                bar.set_style(progress.style());
                bar.enable_steady_tick(Duration::from_millis(200));
                Some(bar)
            }
            Output::Lines { .. } => {
                let amount = if total == 0 {
                    String::new()
                } else {
                    format!(", {}", amount(total, unit))
                };
                self.say(&format!("{name}: started{amount}"));
                None
            }
            Output::Hidden => None,
        };
        Stage {
            control: self.clone(),
            progress,
            bar,
            finished: false,
        }
    }

    /// Writes one line to standard error without tearing the bars; nothing when hidden.
    pub fn say(&self, line: &str) {
        match &self.shared.output {
            Output::Hidden => {}
            Output::Bars(bars) => bars.suspend(|| write_line(&mut std::io::stderr(), line)),
            Output::Lines { writer, .. } => write_line(&mut *lock(writer), line),
        }
    }
}

/// One stage of long work: a bar on a terminal, lines elsewhere. Dropping it before [`Stage::finish`] takes the bar away.
#[must_use = "the progress of a stage is shown for as long as it is held"]
pub struct Stage {
    control: Control,
    progress: Arc<Progress>,
    bar: Option<ProgressBar>,
    finished: bool,
}

struct Progress {
    name: String,
    unit: String,
    total: AtomicU64,
    position: AtomicU64,
    clock: Mutex<Clock>,
    message: Mutex<String>,
}

/// Where and when the counted work began; work done in an earlier run does not enter the rate.
struct Clock {
    base: u64,
    started: Instant,
    last_line: Instant,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("name", &self.progress.name)
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}

impl Stage {
    /// Counts `n` more units as done.
    pub fn advance(&self, n: u64) {
        let position = self.progress.position.fetch_add(n, Ordering::Relaxed) + n;
        self.show(position);
    }

    /// Sets the number of units done. Everything above the last [`Stage::resume_from`] counts for the rate.
    pub fn set(&self, position: u64) {
        let before = self.progress.position.swap(position, Ordering::Relaxed);
        if position < before {
            let mut clock = lock(&self.progress.clock);
            clock.base = clock.base.min(position);
        }
        self.show(position);
    }

    /// Sets the number of units that an earlier run has done; they and the time until now do not count for the rate.
    pub fn resume_from(&self, position: u64) {
        self.progress.position.store(position, Ordering::Relaxed);
        {
            let mut clock = lock(&self.progress.clock);
            clock.base = position;
            clock.started = Instant::now();
        }
        if position > 0 && self.bar.is_none() {
            let progress = &self.progress;
            let done = amount(position, &progress.unit);
            self.control
                .say(&format!("{}: going on after {done}", progress.name));
        }
        self.show(position);
    }

    /// Changes the total, when it turns out to be another than was thought.
    pub fn set_total(&self, total: u64) {
        self.progress.total.store(total, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_style(self.progress.style());
        }
    }

    /// A short text beside the figures, such as the present loss.
    pub fn message(&self, text: &str) {
        text.clone_into(&mut lock(&self.progress.message));
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// The units done so far.
    pub fn position(&self) -> u64 {
        self.progress.position.load(Ordering::Relaxed)
    }

    /// Ends the stage as done and leaves one line with the time it took and the rate.
    pub fn finish(mut self) {
        self.finished = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.control.say(&self.progress.summary(Instant::now()));
    }

    fn show(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
        if let Output::Lines { every, .. } = self.control.shared.output {
            let now = Instant::now();
            // Whoever finds the clock taken leaves the line to the one who has it.
            let due = self.progress.clock.try_lock().is_ok_and(|mut clock| {
                let due = now.saturating_duration_since(clock.last_line) >= every;
                if due {
                    clock.last_line = now;
                }
                due
            });
            if due {
                self.control.say(&self.progress.line(now));
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !self.finished && matches!(self.control.shared.output, Output::Lines { .. }) {
            let progress = &self.progress;
            self.control.say(&format!(
                "{}: stopped at {}",
                progress.name,
                progress.amounts()
            ));
        }
    }
}

impl Progress {
    fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Units per second since the counted work began, and the time since then.
    fn pace(&self, now: Instant) -> (f64, Duration) {
        let clock = lock(&self.clock);
        let elapsed = now.saturating_duration_since(clock.started);
        let done = self.position().saturating_sub(clock.base) as f64;
        (done / elapsed.as_secs_f64().max(1e-9), elapsed)
    }

    fn amounts(&self) -> String {
        let (position, total) = (self.position(), self.total());
        match (total, self.unit.as_str()) {
            (0, unit) => amount(position, unit),
            (_, "bytes") => format!("{}/{}", amount(position, "bytes"), amount(total, "bytes")),
            (_, unit) => format!("{}/{}", thousands(position), amount(total, unit)),
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        let (rate, _) = self.pace(now);
        let left = self.total().checked_sub(self.position())?;
        (self.total() > 0 && rate > 0.0)
            .then(|| Duration::from_secs_f64((left as f64 / rate).min(1e9)))
    }

    fn rate(&self, now: Instant) -> String {
        let (per_second, elapsed) = self.pace(now);
        if per_second > 0.0 && elapsed > Duration::from_millis(1) {
            rate(per_second, &self.unit)
        } else {
            String::new()
        }
    }

    fn line(&self, now: Instant) -> String {
        let mut first = format!("{}: {}", self.name, self.amounts());
        if let Some(percent) = self
            .position()
            .saturating_mul(100)
            .checked_div(self.total())
        {
            let _ = write!(first, " ({percent}%)");
        }
        let elapsed = format!("{} elapsed", clock_time(self.pace(now).1));
        let left = self
            .left(now)
            .map(|left| format!("{} left", clock_time(left)));
        let parts = [
            first,
            self.rate(now),
            elapsed,
            left.unwrap_or_default(),
            lock(&self.message).clone(),
        ];
        join(&parts)
    }

    fn summary(&self, now: Instant) -> String {
        let position = self.position();
        let done = if position > 0 {
            amount(position, &self.unit)
        } else {
            String::new()
        };
        let mut first = join(&[format!("{}: done", self.name), done]);
        let _ = write!(first, " in {}", duration(self.pace(now).1));
        let rate = self.rate(now);
        if !rate.is_empty() {
            let _ = write!(first, " ({rate})");
        }
        join(&[first, lock(&self.message).clone()])
    }

    fn style(self: &Arc<Self>) -> ProgressStyle {
        let template = if self.total() == 0 {
            "{name} {spinner} {amounts}  {pace}  {elapsed_time}  {msg}"
        } else {
            "{name} [{bar:24}] {amounts}  {pace}  {elapsed_time}{left}  {msg}"
        };
        let key = |text: fn(&Self, Instant) -> String| {
            let progress = Arc::clone(self);
            move |_: &ProgressState, w: &mut dyn fmt::Write| {
                // Nothing can be done about a terminal that takes no text.
                let _ = w.write_str(&text(&progress, Instant::now()));
            }
        };
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
            .tick_chars("-\\|/ ")
            .with_key("name", key(|progress, _| progress.name.clone()))
            .with_key("amounts", key(|progress, _| progress.amounts()))
            .with_key("pace", key(Self::rate))
            .with_key(
                "elapsed_time",
                key(|progress, now| clock_time(progress.pace(now).1)),
            )
            .with_key(
                "left",
                key(|progress, now| {
                    progress
                        .left(now)
                        .map_or_else(String::new, |left| format!(", {} left", clock_time(left)))
                }),
            )
    }
}

fn write_line(writer: &mut dyn Write, line: &str) {
    // Progress that cannot be shown must not stop the work.
    let _ = writer
        .write_all(format!("{line}\n").as_bytes())
        .and_then(|()| writer.flush());
}

/// The parts that are not empty, with commas between them.
fn join(parts: &[String]) -> String {
    let parts: Vec<_> = parts
        .iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(", ")
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `12345678` as `12,345,678`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn amount(n: u64, unit: &str) -> String {
    if unit == "bytes" {
        byte_amount(n as f64)
    } else {
        format!("{} {unit}", thousands(n))
    }
}

fn byte_amount(bytes: f64) -> String {
    let (size, unit) = match bytes {
        b if b < 1e3 => return format!("{bytes:.0} B"),
        b if b < 1e6 => (bytes / 1e3, "kB"),
        b if b < 1e9 => (bytes / 1e6, "MB"),
        _ => (bytes / 1e9, "GB"),
    };
    format!("{size:.1} {unit}")
}

fn rate(per_second: f64, unit: &str) -> String {
    match per_second {
        _ if unit == "bytes" => format!("{}/s", byte_amount(per_second)),
        r if r >= 100.0 => format!("{} {unit}/s", thousands(r.round() as u64)),
        r if r >= 1.0 => format!("{r:.1} {unit}/s"),
        r => format!("{r:.3} {unit}/s"),
    }
}

/// `1:05`, `2:03:09`.
fn clock_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// `3.2 s` when short, else as a clock.
fn duration(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        clock_time(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl Text {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(lock(&self.0).clone())
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        }
    }

    impl Write for Text {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(amount(98_362_432, "bytes"), "98.4 MB");
        assert_eq!(amount(1_500, "tokens"), "1,500 tokens");
        assert_eq!(rate(1352.6, "tokens"), "1,353 tokens/s");
        assert_eq!(rate(12.34, "steps"), "12.3 steps/s");
        assert_eq!(rate(0.25, "steps"), "0.250 steps/s");
        assert_eq!(clock_time(Duration::from_secs(65)), "1:05");
        assert_eq!(clock_time(Duration::from_secs(7389)), "2:03:09");
        assert_eq!(duration(Duration::from_millis(3210)), "3.2 s");
    }

    #[test]
    fn one_line_at_start_and_end() {
        let text = Text::default();
        let control = Control::lines(Box::new(text.clone()), Duration::from_secs(100));
        let stage = control.stage("harvest", 2000, "tokens");
        stage.advance(1000);
        stage.advance(1000);
        stage.finish();
        let lines = text.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], "harvest: started, 2,000 tokens");
        assert!(
            lines[1].starts_with("harvest: done, 2,000 tokens in 0."),
            "{lines:?}"
        );
    }

    #[test]
    fn lines_in_between_and_a_stage_left_early() {
        let text = Text::default();
        let control = Control::lines(Box::new(text.clone()), Duration::ZERO);
        let stage = control.stage("train", 10, "steps");
        stage.message("loss 0.5");
        std::thread::sleep(Duration::from_millis(3));
        stage.advance(5);
        drop(stage);
        let lines = text.lines();
        assert!(
            lines[1].starts_with("train: 5/10 steps (50%), "),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("0:00 left, loss 0.5"), "{lines:?}");
        assert_eq!(lines[2], "train: stopped at 5/10 steps");
    }

    #[test]
    fn resumed_work_does_not_enter_the_rate() {
        let control = Control::hidden();
        let stage = control.stage("train", 2000, "steps");
        stage.resume_from(1000);
        let started = lock(&stage.progress.clock).started;
        stage.set(1010);
        let (rate, _) = stage.progress.pace(started + Duration::from_secs(2));
        assert!((rate - 5.0).abs() < 1e-9, "{rate}");
        assert_eq!(
            stage.progress.left(started + Duration::from_secs(2)),
            Some(Duration::from_secs(198))
        );
        stage.set(900);
        let (rate, _) = stage.progress.pace(started + Duration::from_secs(2));
        assert!(rate.abs() < 1e-9, "{rate}");
    }

    #[test]
    fn clones_share_the_flag() {
        let control = Control::hidden();
        let clone = control.clone();
        assert_eq!(control.check(), Ok(()));
        clone.interrupt();
        assert_eq!(control.check(), Err(Interrupted));
        assert!(control.is_interrupted());
    }

    #[test]
    fn stages_are_shared_between_threads() {
        let control = Control::lines(Box::new(Text::default()), Duration::ZERO);
        let stage = control.stage("count", 4000, "steps");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| stage.advance(1)));
            }
        });
        assert_eq!(stage.position(), 4000);
    }

    #[test]
    fn bars_are_drawn_from_our_own_keys() {
        let control = Control::new(Output::Bars(MultiProgress::with_draw_target(
            indicatif::ProgressDrawTarget::hidden(),
        )));
        let stage = control.stage("harvest", 10, "tokens");
        stage.resume_from(4);
        stage.advance(2);
        stage.message("text");
        control.say("");
        stage.finish();
        drop(control.stage("unknown", 0, "bytes"));
    }
}
