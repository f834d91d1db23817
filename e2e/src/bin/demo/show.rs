//! Bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dragonfly_e2e::get::{Get, State};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between lines where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(2);

pub(crate) struct Show {
    names: Vec<String>,
    all: MultiProgress,
    bars: Vec<ProgressBar>,
    on_terminal: bool,
    began: Instant,
    last_line: Instant,
}

impl Show {
    pub(crate) fn new(names: &[String]) -> Self {
        let on_terminal = std::io::stdout().is_terminal();
        let target = if on_terminal {
            ProgressDrawTarget::stdout_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let all = MultiProgress::with_draw_target(target);
        let template =
            "{prefix:10} {bar:28} {percent:>3}% {bytes:>11} {binary_bytes_per_sec:>13} {msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = |name: &String| {
            all.add(ProgressBar::new(0))
                .with_style(style.clone())
                .with_prefix(name.clone())
        };
        let bars = names.iter().map(bar).collect();
        let now = Instant::now();
        Self {
            names: names.to_vec(),
            all,
            bars,
            on_terminal,
            began: now,
            last_line: now,
        }
    }

    /// Shows how far each is.
    pub(crate) fn draw(&mut self, gets: &[Get]) {
        let states: Vec<_> = gets.iter().map(Get::state).collect();
        if self.on_terminal {
            for (bar, state) in self.bars.iter().zip(&states) {
                bar.set_length(state.total.unwrap_or(0));
                bar.set_position(state.have);
                bar.set_message(word(state));
                if state.done && !bar.is_finished() {
                    bar.abandon();
                }
            }
        } else if self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            let parts = self.names.iter().zip(&states).map(|(name, state)| {
                let percent = state
                    .total
                    .map_or(0, |total| state.have * 100 / total.max(1));
                format!("{name} {percent}%")
            });
            let parts: Vec<_> = parts.collect();
            println!(
                "{:>5.1}s  {}",
                self.began.elapsed().as_secs_f64(),
                parts.join("  ")
            );
        }
    }

    /// Something that happens to all.
    pub(crate) fn say(&self, text: &str) {
        let text = format!("{:>5.1}s  {text}", self.began.elapsed().as_secs_f64());
        if !self.on_terminal || self.all.println(&text).is_err() {
            println!("{text}");
        }
    }

    /// Leaves the bars as they are.
    pub(crate) fn end(&self) {
        self.bars
            .iter()
            .filter(|bar| !bar.is_finished())
            .for_each(ProgressBar::abandon);
    }
}

/// Where it comes from.
fn word(state: &State) -> String {
    let t = &state.traffic;
    let parts = [
        ("origin", t.origin),
        ("seed", t.seeds),
        ("peers", t.peers),
        ("cache", t.cache),
    ];
    let parts = parts.iter().filter(|(_, n)| *n > 0);
    let parts: Vec<_> = parts
        .map(|(name, n)| format!("{name} {}", HumanBytes(*n)))
        .collect();
    parts.join(", ")
}
