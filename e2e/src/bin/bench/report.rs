//! Results as JSON for programs, and from the same JSON as a document for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use dragonfly_e2e::{Failed, Result};
use serde_json::{Value, json};

use crate::bed::Run;
use crate::case::Case;

const OUT: &str = "target/bench";
const DOCUMENT: &str = "docs/benchmarks.md";

/// The middle one of several; not a number when there is none.
pub(crate) fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which a share `q` of ascending times lies.
fn quantile(times: &[f64], q: f64) -> f64 {
    let at = (times.len() as f64 * q) as usize;
    times
        .get(at.min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

fn rounded(v: f64) -> f64 {
    (v * 1e4).round() / 1e4
}

/// One run as the document's readers compare it.
fn row(case: &Case, run: &Run) -> Value {
    let (limit, size) = (case.limit(), case.size as f64);
    let gib = case.peers() as f64 * size / f64::from(1 << 30);
    let slowest = quantile(&run.times, 1.0);
    let p50 = quantile(&run.times, 0.5);
    let mut row = json!({
        "slowest_over_limit": rounded(slowest / limit),
        "p50_over_limit": rounded(p50 / limit),
        "p99_over_p50": rounded(quantile(&run.times, 0.99) / p50),
        "origin_over_size": rounded(run.origin_bytes / size),
        "seed_over_size": rounded(run.seed_bytes / size),
        "cpu_s_per_gib": rounded(run.cpu / gib),
        "peak_rss_mib": rounded(run.rss_mib),
        "wall_s": rounded(slowest),
    });
    if let Some(first) = run.first {
        row["first_4mib_s"] = json!(rounded(first));
    }
    if let Some(quick) = run.quick {
        row["quick_over_limit"] = json!(rounded(quick / limit));
    }
    row
}

/// One line on a run, while the bench goes on.
pub(crate) fn line(case: &Case, system: &str, number: usize, run: &Run) -> String {
    let row = row(case, run);
    format!(
        "{} N={} {} run {number}: slowest {} x the limit, p50 {}, seed {} F, origin {} F, {} CPU s/GiB, {} MiB{}{}",
        case.name,
        case.peers(),
        system,
        row["slowest_over_limit"],
        row["p50_over_limit"],
        row["seed_over_size"],
        row["origin_over_size"],
        row["cpu_s_per_gib"],
        row["peak_rss_mib"],
        run.first
            .map(|f| format!(", first 4 MiB {f:.2} s"))
            .unwrap_or_default(),
        run.quick
            .map(|q| format!(", quick uplinks {:.4} x", q / case.limit()))
            .unwrap_or_default(),
    )
}

/// Figures that only some cases have, and what their column is called.
const SOME: [(&str, &str); 2] = [
    ("first_4mib_s", "first 4 MiB, s"),
    ("quick_over_limit", "slowest with a quick uplink/limit"),
];

/// A case's results; medians are of each figure by itself.
pub(crate) fn rows(case: &Case, results: &[(&str, Vec<Run>)]) -> Value {
    let systems: Vec<Value> = results
        .iter()
        .map(|(system, runs)| {
            let rows: Vec<Value> = runs.iter().map(|r| row(case, r)).collect();
            json!({"system": system, "runs": rows, "median": medians(&rows)})
        })
        .collect();
    json!({
        "case": case.name,
        "about": case.about,
        "peers": case.peers(),
        "rate_mbit": case.rate,
        "size_bytes": case.size,
        "limit_s": rounded(case.limit()),
        "systems": systems,
    })
}

/// The median of every figure over rows of the same shape.
pub(crate) fn medians(rows: &[Value]) -> Value {
    let mut out = serde_json::Map::new();
    for key in rows
        .first()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let all = rows.iter().filter_map(|r| r[key.0].as_f64()).collect();
        out.insert(key.0.clone(), json!(rounded(median(all))));
    }
    Value::Object(out)
}

/// Writes a bench's cases over those of the same name and size that an earlier run left, and the
/// document anew from all there is.
pub(crate) fn write(bench: &str, cases: Vec<Value>) -> Result<()> {
    let path = Path::new(OUT).join(format!("{bench}.json"));
    let failed = |e| Failed::at(path.display(), e);
    fs::create_dir_all(OUT).map_err(failed)?;
    let mut all: Vec<Value> = read(bench)["cases"].as_array().cloned().unwrap_or_default();
    for mut new in cases {
        new["measured"] = json!(measured());
        let same = |old: &Value| old["case"] == new["case"] && old["peers"] == new["peers"];
        match all.iter_mut().find(|old| same(old)) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    all.sort_by_key(|c| {
        (
            c["case"] != "equal",
            c["case"].to_string(),
            c["peers"].as_u64(),
        )
    });
    let text = json!({"bench": bench, "cases": all}).to_string();
    fs::write(&path, text + "\n").map_err(failed)?;
    let text = document();
    fs::write(DOCUMENT, &text).map_err(|e| Failed::at(DOCUMENT, e))?;
    println!("{text}");
    Ok(())
}

/// The day, and the build where `BENCH_BUILD` names it.
fn measured() -> String {
    let day = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    match std::env::var("BENCH_BUILD") {
        Ok(build) if !build.is_empty() => format!("{day}, build {build}"),
        _ => day,
    }
}

/// When cases were measured: of several that differ, each with its number of nodes.
fn when<'a>(cases: impl Iterator<Item = &'a Value> + Clone) -> String {
    let of = |case: &Value| case["measured"].as_str().unwrap_or("earlier").to_owned();
    let mut all = cases.clone().map(of);
    let first = all.next().unwrap_or_default();
    if all.all(|other| other == first) {
        return format!("Measured {first}.");
    }
    let each = cases.map(|case| format!("N = {} {}", case["peers"], of(case)));
    format!("Measured: {}.", each.collect::<Vec<_>>().join("; "))
}

fn read(bench: &str) -> Value {
    let text = fs::read_to_string(Path::new(OUT).join(format!("{bench}.json")));
    text.ok()
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or(Value::Null)
}

fn document() -> String {
    let mut out = String::from(
        "# Benchmarks\n\nWritten by `make bench` and `make bench-full`; nothing here is edited by hand. \
         Figures are medians of the runs named, with the range where one is given. The systems of a table take \
         turns in one run on one machine: compare them with each other, and not with another table's or another \
         machine's.\n\nF: the content's size. p50, p99: the median node, the slowest but one in a hundred. `added`: what \
         the first system costs more than the second.\n",
    );
    out_of(
        &mut out,
        &read("swarm"),
        "One content to N nodes on shaped links",
        "SHA-256 of every copy is checked. Files lie in memory (tmpfs) where there is room: nodes \
         elsewhere do not share a disk.",
    );
    // Pulls over links are compared with the limit of these; what is not shaped has figures of its own.
    let images = read("images");
    let only = |shaped: bool| {
        let all = images["cases"].as_array().cloned().unwrap_or_default();
        let cases = all.into_iter().filter(|c| (c["rate_mbit"] != 0) == shaped);
        json!({"cases": cases.collect::<Vec<_>>()})
    };
    out_of(
        &mut out,
        &only(true),
        "One image to N nodes' containerd on shaped links",
        "Registry, pull-through cache, scheduler and seed are on one node, whose link is as the others'. \
         The origin is the registry; what its node sent is under `seed sent`.",
    );
    plain(&mut out, &only(false));
    for bench in ["io", "growth", "tls", "scheduler", "control"] {
        plain(&mut out, &read(bench));
    }
    out
}

fn out_of(out: &mut String, results: &Value, title: &str, about: &str) {
    let cases = results["cases"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if cases.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "\n## {title}\n\nEvery node is a network namespace; links are shaped \
         both ways (HTB). {about} The limit is the time that no system could \
         beat. CPU is user and system time of all processes over N x size; memory is the largest peak of \
         one process; a virtual machine's memory is touched before each run.\n",
    );
    let mut name = "";
    let mut some = vec![];
    for case in cases {
        let this = case["case"].as_str().unwrap_or_default();
        if this != name {
            name = this;
            let about = case["about"].as_str().unwrap_or_default();
            some = SOME.to_vec();
            some.retain(|(key, _)| case["systems"][0]["median"][key].is_number());
            let titles: String = some
                .iter()
                .map(|(_, title)| format!(" {title} |"))
                .collect();
            let _ = write!(
                out,
                "\n### {name}: {about}\n\n{} MiB, {} Mbit/s. {}\n\n\
                 | N | system | runs | slowest/limit (median; range) | p50/limit | p99/p50 | seed sent | \
                 origin sent | CPU s/GiB | peak MiB |{titles}\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |{}\n",
                case["size_bytes"].as_u64().unwrap_or(0) >> 20,
                case["rate_mbit"],
                when(cases.iter().filter(|other| other["case"] == case["case"])),
                " --- |".repeat(some.len()),
            );
        }
        for system in case["systems"].as_array().into_iter().flatten() {
            let runs = system["runs"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let (low, high) = range(runs, "slowest_over_limit");
            let m = &system["median"];
            let f = |key: &str| m[key].as_f64().unwrap_or(f64::NAN);
            let extra: String = some
                .iter()
                .map(|(key, _)| m[key].as_f64())
                .map(|v| v.map_or(" - |".to_owned(), |v| format!(" {v:.2} |")))
                .collect();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:.3}; {low:.3}-{high:.3} | {:.3} | {:.3} | {:.2} F | {:.2} F | {:.1} | {:.0} |{extra}",
                case["peers"],
                system["system"].as_str().unwrap_or_default(),
                runs.len(),
                f("slowest_over_limit"),
                f("p50_over_limit"),
                f("p99_over_p50"),
                f("seed_over_size"),
                f("origin_over_size"),
                f("cpu_s_per_gib"),
                f("peak_rss_mib"),
            );
        }
    }
}

/// The least and the most of a figure.
fn range(runs: &[Value], key: &str) -> (f64, f64) {
    let all = runs.iter().filter_map(|r| r[key].as_f64());
    all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (f64::min(low, v), f64::max(high, v))
    })
}

/// A median, with the range where runs differ.
fn cell(median: f64, runs: &[Value], key: &str) -> String {
    let (low, high) = range(runs, key);
    let [median, low, high] = [median, low, high].map(|v| format!("{v:.2}"));
    if runs.len() < 2 || low == high {
        return median;
    }
    format!("{median}; {low} to {high}")
}

/// A bench whose figures differ from case to case: a table for each, a column for each figure.
fn plain(out: &mut String, results: &Value) {
    for case in results["cases"].as_array().into_iter().flatten() {
        let text = |key: &str| case[key].as_str().unwrap_or_default().to_owned();
        let (title, about) = (text("case"), text("about"));
        let measured = when(std::iter::once(case));
        let _ = write!(out, "\n## {title}: {about}\n\n{measured}\n\n");
        let systems = case["systems"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let Some(first) = systems.first().and_then(|s| s["median"].as_object()) else {
            continue;
        };
        let keys: Vec<&String> = first.keys().collect();
        let titles: Vec<String> = keys.iter().map(|k| k.replace('_', " ")).collect();
        let _ = writeln!(out, "| system | runs | {} |", titles.join(" | "));
        let _ = writeln!(out, "| --- | --- |{}", " --- |".repeat(keys.len()));
        for system in systems {
            let runs = system["runs"].as_array().map_or(&[][..], Vec::as_slice);
            let cells: Vec<String> = keys
                .iter()
                .map(|k| system["median"][k.as_str()].as_f64().map(|m| (k, m)))
                .map(|v| v.map_or("-".to_owned(), |(k, median)| cell(median, runs, k)))
                .collect();
            let name = system["system"].as_str().unwrap_or_default();
            let _ = writeln!(out, "| {name} | {} | {} |", runs.len(), cells.join(" | "));
        }
    }
}
