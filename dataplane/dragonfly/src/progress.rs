//! What a person sees of a download: one line, redrawn; or what a program sees: lines of JSON.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use dragonfly_client::{Event, rpc};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How a download is shown.
pub(crate) enum Progress {
    /// Not at all.
    Silent,
    /// A line on the standard error stream.
    Bar(ProgressBar),
    /// Objects on the standard error stream.
    Json,
}

impl Progress {
    /// A bar where a person watches and has not asked for quiet.
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        if json {
            return Self::Json;
        }
        if quiet || !std::io::stderr().is_terminal() {
            return Self::Silent;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        bar.set_style(spinner());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar.set_message("asking for it");
        Self::Bar(bar)
    }

    /// Shows an event.
    pub(crate) fn on(&self, event: &Event) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => draw(bar, event),
            Self::Json => {
                if let Some(json) = json(event) {
                    line(&json);
                }
            }
        }
    }

    /// The last word, for programs; people read the error itself.
    pub(crate) fn failed(&self, exit: u8, message: &str) {
        if let Self::Json = self {
            let json = serde_json::json!({
                "event": "failed", "exitCode": exit, "message": message,
            });
            line(&json);
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }

    /// Whether people read what is written.
    pub(crate) const fn is_json(&self) -> bool {
        matches!(self, Self::Json)
    }
}

fn line(json: &serde_json::Value) {
    let _ = writeln!(std::io::stderr(), "{json}");
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {bytes} {speed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("speed", speed)
}

fn measured() -> ProgressStyle {
    let template = "{percent:>3}% {bar:24} {bytes}/{total_bytes} {speed} {eta} {msg}";
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("speed", speed)
}

fn speed(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    let _ = write!(out, "{}/s", HumanBytes(state.per_sec() as u64));
}

fn draw(bar: &ProgressBar, event: &Event) {
    match event {
        Event::Started(started) => {
            let range = started.range.unwrap_or_default();
            if range.end > range.start {
                bar.set_length(range.end - range.start);
                bar.set_style(measured());
            }
            bar.reset_eta();
        }
        Event::Progress(p) => {
            if let (Some(total), None) = (p.total, bar.length()) {
                bar.set_length(total);
                bar.set_style(measured());
            }
            bar.set_position(p.have);
            bar.set_message(origins(p));
        }
        Event::Reconnecting => bar.set_message("the node is away; asking again"),
        Event::Writing { written, total } => {
            bar.set_message(format!(
                "all here; writing the file: {} of {}",
                HumanBytes(*written),
                HumanBytes(*total)
            ));
        }
        Event::Done(done) => {
            if let Some(p) = &done.progress {
                bar.set_position(p.have);
            }
        }
        _ => {}
    }
}

/// Where the bytes come from, what is nothing left out.
pub(crate) fn origins(p: &rpc::Progress) -> String {
    let parts = [
        ("origin", p.from_origin),
        ("mesh", p.from_seeds + p.from_peers),
        ("cache", p.from_cache),
    ];
    let parts = parts.iter().filter(|(_, n)| *n > 0);
    let text = parts.map(|(name, n)| format!("{name} {}", HumanBytes(*n)));
    text.collect::<Vec<_>>().join(", ")
}

fn json(event: &Event) -> Option<serde_json::Value> {
    let progress = |p: &rpc::Progress| {
        serde_json::json!({
            "have": p.have, "total": p.total, "fromCache": p.from_cache,
            "fromOrigin": p.from_origin, "fromSeeds": p.from_seeds, "fromPeers": p.from_peers,
            "neighbours": p.neighbours,
        })
    };
    let (name, mut fields) = match event {
        Event::Started(s) => {
            let range = s.range.unwrap_or_default();
            let fields = serde_json::json!({
                "task": s.task, "totalLength": s.total_len, "contentType": s.content_type,
                "start": range.start, "end": (range.end > 0).then_some(range.end),
            });
            ("started", fields)
        }
        Event::Progress(p) => ("progress", progress(p)),
        Event::Reconnecting => ("reconnecting", serde_json::json!({})),
        Event::Writing { written, total } => {
            let fields = serde_json::json!({"written": written, "total": total});
            ("writing", fields)
        }
        Event::Done(d) => {
            let mut fields = progress(&d.progress.unwrap_or_default());
            fields["digest"] = d.digest.clone().into();
            fields["elapsedMs"] = d.elapsed_ms.into();
            ("done", fields)
        }
        _ => return None,
    };
    fields["event"] = name.into();
    Some(fields)
}
