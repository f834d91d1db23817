//! Nothing that was started outlives who started it.
//!
//! `Drop` ends processes in every orderly end, panics included; it does not run when this process is
//! killed or interrupted. So a shell in a process group of its own reads from a pipe what runs and
//! which directories are temporary. When the pipe ends, for whatever reason, it ends and removes what
//! is still on its list, by id.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

const SCRIPT: &str = r#"
pids=" " dirs=
while read -r what name; do
    case $what in
        started) pids="$pids$name " ;;
        ended) pids="${pids%% $name *} ${pids#* $name }" ;;
        made) dirs="$dirs
$name" ;;
    esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
IFS='
'
for dir in $dirs; do [ -d "$dir" ] && rm -rf "$dir"; done
"#;

static PIPE: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();

/// A process that is to end with this one.
pub fn started(id: u32) {
    tell(&format!("started {id}"));
}

/// It has ended: its id may be another's from now on.
pub fn ended(id: u32) {
    tell(&format!("ended {id}"));
}

/// A directory that is to go with this process, where it is still there.
pub fn made(dir: &Path) {
    // A name with a line break would be two lines: such a directory is left to `Drop`.
    if let Some(name) = dir.to_str().filter(|name| !name.contains('\n')) {
        tell(&format!("made {name}"));
    }
}

/// Where no shell can be started, `Drop` has to do.
fn tell(line: &str) {
    let Some(pipe) = PIPE.get_or_init(start) else {
        return;
    };
    let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = pipe.write_all(format!("{line}\n").as_bytes());
}

fn start() -> Option<Mutex<ChildStdin>> {
    let mut shell = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .ok()?;
    shell.stdin.take().map(Mutex::new)
}
