//! What processes cost: CPU seconds and memory, as the kernel counts them.

use std::fs;

/// The kernel's clock tick for these counters (USER_HZ), the same on every architecture of Linux.
const TICKS: f64 = 100.0;

/// User and system seconds of a process that runs, all its threads.
pub fn cpu(pid: u32) -> f64 {
    ticks(&format!("/proc/{pid}/stat"), [11, 12])
}

/// CPU seconds of children that ended and were waited for.
pub fn ended_children() -> f64 {
    ticks("/proc/self/stat", [13, 14])
}

/// Peak (`VmHWM`) or present (`VmRSS`) resident memory of a process, MiB.
pub fn memory(pid: u32, which: &str) -> f64 {
    kib(&format!("/proc/{pid}/status"), which) / 1024.0
}

/// Bytes of memory that programs may still have.
pub fn available() -> u64 {
    (kib("/proc/meminfo", "MemAvailable") * 1024.0) as u64
}

/// A line `which: <n> kB` of a file; nought where there is none.
fn kib(path: &str, which: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(which));
    let kib = line.and_then(|l| l.trim_start_matches(':').split_whitespace().next());
    kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or(0.0)
}

/// Sums fields of a `stat` file, counted from the state on, which follows the name in parentheses.
fn ticks(path: &str, fields: [usize; 2]) -> f64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let of = |n: usize| all.get(n).and_then(|f| f.parse::<f64>().ok());
    fields.iter().filter_map(|n| of(*n)).sum::<f64>() / TICKS
}
