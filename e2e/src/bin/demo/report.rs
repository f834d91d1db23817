//! The table at the end.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::Duration;

use dragonfly_e2e::get::Traffic;
use dragonfly_e2e::mesh::Mesh;
use dragonfly_e2e::{Failed, Result};
use indicatif::HumanBytes;

/// What became of one peer.
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) traffic: Traffic,
    /// What it still had when it was started again, if it was.
    pub(crate) kept: Option<u64>,
    /// Why its output is not the source.
    pub(crate) wrong: Option<String>,
}

/// What became of all.
pub(crate) struct Report {
    pub(crate) peers: Vec<Peer>,
    pub(crate) seed: Traffic,
    pub(crate) size: u64,
    /// What the origin counted, where it is ours.
    pub(crate) sent: Option<u64>,
    pub(crate) wall: Duration,
    pub(crate) killed: bool,
    pub(crate) transport: &'static str,
}

impl Report {
    /// Whether every peer has the source.
    pub(crate) fn is_good(&self) -> bool {
        self.peers.iter().all(|peer| peer.wrong.is_none())
    }
}

/// What the seed says it took from where.
pub(crate) async fn held_by(mesh: &Mesh) -> Result<Traffic> {
    let Some(seed) = mesh.seeds.first() else {
        return Ok(Traffic::default());
    };
    let mut command = Command::new(&mesh.dragonfly);
    command
        .args(["top", "--output", "json", "--socket"])
        .arg(&seed.socket);
    command
        .env_remove("DRAGONFLY_SCHEDULER")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output
        .map_err(|e| Failed::at("top", e))?
        .map_err(|e| Failed::at("top", e))?;
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| Failed::at("top", e))?;
    let number = |name: &str| json[name].as_u64().unwrap_or(0);
    Ok(Traffic {
        origin: number("fromOrigin"),
        seeds: number("fromSeeds"),
        peers: number("fromPeers"),
        cache: 0,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["", "time", "origin", "seed", "peers", "cache", "SHA-256"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.push(row("seed-0", "", &self.seed, ""));
        for peer in &self.peers {
            let took = format!("{:.1} s", peer.took.as_secs_f64());
            let verdict = match (&peer.wrong, peer.kept) {
                (Some(_), _) => "WRONG".to_owned(),
                (None, None) => "ok".to_owned(),
                (None, Some(kept)) => format!("ok, killed, went on with {}", HumanBytes(kept)),
            };
            rows.push(row(&peer.name, &took, &peer.traffic, &verdict));
        }
        let width = |i: usize| {
            rows.iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..heads.len()).map(width).collect();
        for row in &rows {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let left = i == 0 || i + 1 == heads.len();
                let cell = if left {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        self.totals(f)?;
        for peer in &self.peers {
            if let Some(wrong) = &peer.wrong {
                writeln!(f, "{}: {wrong}", peer.name)?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.peers.iter().map(|p| p.traffic.origin).sum::<u64>() + self.seed.origin;
        let sent = self.sent.unwrap_or(nodes);
        let times = sent as f64 / self.size.max(1) as f64;
        let delivered = self.size * self.peers.len() as u64;
        let rate = delivered as f64 / self.wall.as_secs_f64().max(0.001);
        let killed = if self.killed {
            ", one peer and the scheduler killed half way"
        } else {
            ""
        };
        writeln!(
            f,
            "\n{} to {} peers over {} in {:.1} s{killed}: {}/s in all; the origin sent {times:.3} \
             times the size",
            HumanBytes(self.size),
            self.peers.len(),
            self.transport,
            self.wall.as_secs_f64(),
            HumanBytes(rate as u64),
        )
    }
}

fn row(name: &str, took: &str, t: &Traffic, verdict: &str) -> Vec<String> {
    let bytes = |n: u64| {
        if n == 0 {
            "-".to_owned()
        } else {
            HumanBytes(n).to_string()
        }
    };
    let [origin, seeds, peers, cache] = [t.origin, t.seeds, t.peers, t.cache].map(bytes);
    vec![
        name.to_owned(),
        took.to_owned(),
        origin,
        seeds,
        peers,
        cache,
        verdict.to_owned(),
    ]
}
