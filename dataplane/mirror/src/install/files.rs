//! The files of container runtimes that say where registries are.
//!
//! Beside a file that was there before stands its backup while an entry is in it; directories and files
//! that were made here go again with the entry.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::hosts::{self, Certificates, Unsound};
use super::{docker, registries};

const FILE: &str = "hosts.toml";
/// The directory for registries without one of their own.
const ANY: &str = "_default";
/// Read after all others of its directory.
const REGISTRIES: &str = "registries.conf.d/999-dragonfly.conf";
const DOCKER: &str = "daemon.json";
/// Nobody's file of settings is longer.
const MOST: u64 = 1 << 20;

/// Why an entry is not written or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is left alone.
    #[error("{0} is left as it is: {1}")]
    Unsound(PathBuf, Unsound),
    /// Whoever made the link has to say what it should lead to.
    #[error("{0} is left as it is: it is a link or no file")]
    NoFile(PathBuf),
    /// A new entry would take away what is said there.
    #[error("{0} says where {1} is, and is left as it is: add the mirror {2} there")]
    Taken(PathBuf, String, String),
}

/// For whom there is an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host` or `host:port`; `None`: every registry without a directory of its own.
    pub registry: Option<String>,
    /// Where the registry is, where that is not its name.
    pub server: Option<String>,
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is as it should be.
    Nothing,
    /// It is made.
    Made,
    /// It was there, and gets or has got the entry.
    Changed,
    /// It is as it was before there was an entry.
    Restored,
}

/// Entries on one node.
#[derive(Debug, Clone)]
pub struct Entries {
    /// containerd's `certs.d`.
    pub containerd: Option<PathBuf>,
    /// The directory with `registries.conf` and `registries.conf.d`.
    pub containers: Option<PathBuf>,
    /// The directory with Docker's `daemon.json`.
    pub docker: Option<PathBuf>,
    /// The mirror.
    pub mirror: SocketAddr,
    /// For whom.
    pub targets: Vec<Target>,
}

/// What became, or would become, of each file.
pub type Done = Vec<(PathBuf, Result<Change, FileError>)>;

/// What a file's text becomes.
type Made<'a> = dyn Fn(&str) -> Result<String, Unsound> + 'a;

/// A file and what it is to be.
struct Wanted<'a> {
    path: PathBuf,
    made: Box<Made<'a>>,
}

impl Entries {
    /// What writing the entries would change, without doing it.
    pub fn plan(&self) -> Done {
        self.each(|wanted| wanted.change().map(|(change, _)| change))
    }

    /// Writes the entries where they are not yet. One that cannot be written keeps no other from it.
    pub fn write(&self) -> Done {
        self.each(|wanted| wanted.write())
    }

    fn url(&self) -> String {
        format!("http://{}", self.mirror)
    }

    fn each(&self, to_do: impl Fn(&Wanted<'_>) -> Result<Change, FileError>) -> Done {
        let mut done = vec![];
        for target in self.targets.iter().filter(|_| self.containerd.is_some()) {
            let wanted = self.hosts(target);
            // Several may go by one file.
            if done.iter().all(|(path, _)| *path != wanted.path) {
                done.push((wanted.path.clone(), to_do(&wanted)));
            }
        }
        if let Some(directory) = &self.containers {
            let (free, taken) = self.free(directory);
            done.extend(taken.into_iter().map(|(path, error)| (path, Err(error))));
            let path = directory.join(REGISTRIES);
            let made = path.parent().is_some_and(|parent| {
                let ours = read(&path).ok().flatten();
                !parent.exists() || ours.is_some_and(|ours| registries::made_directory(&ours))
            });
            let mirror = self.mirror.to_string();
            let wanted = Wanted {
                made: Box::new(move |text: &str| {
                    registries::with_entry(text, &mirror, &free, made)
                }),
                path,
            };
            done.push((wanted.path.clone(), to_do(&wanted)));
        }
        if let Some(directory) = &self.docker {
            let url = self.url();
            let wanted = Wanted {
                path: directory.join(DOCKER),
                made: Box::new(move |text: &str| docker::with_entry(text, &url)),
            };
            done.push((wanted.path.clone(), to_do(&wanted)));
        }
        done
    }

    /// Takes all entries out, those of earlier settings too.
    pub fn withdraw(&self) -> Done {
        let mut done = vec![];
        if let Some(directory) = &self.containerd {
            match std::fs::read_dir(directory) {
                Ok(found) => {
                    let paths = found.flatten().map(|entry| entry.path().join(FILE));
                    done.extend(paths.map(|path| (path.clone(), restore(&path, |_| true))));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    let error = FileError::Io(directory.clone(), e);
                    done.push((directory.clone(), Err(error)));
                }
            }
        }
        if let Some(directory) = &self.containers {
            let path = directory.join(REGISTRIES);
            done.push((path.clone(), restore(&path, registries::made_directory)));
        }
        if let Some(directory) = &self.docker {
            let path = directory.join(DOCKER);
            done.push((path.clone(), restore_docker(&path, &self.url())));
        }
        done.retain(|(_, change)| !matches!(change, Ok(Change::Nothing)));
        done
    }

    /// The entry of one registry, or of all others, for containerd.
    fn hosts<'a>(&'a self, target: &'a Target) -> Wanted<'a> {
        let directory = self.containerd.as_deref().unwrap_or(Path::new(""));
        let name = target.registry.as_deref().unwrap_or(ANY);
        // Where both are there containerd takes `host_port_`.
        let other = name
            .split_once(':')
            .map(|(host, port)| format!("{host}_{port}_"));
        let other = other.map(|other| directory.join(other));
        let own = other.filter(|other| other.is_dir());
        let own = own.unwrap_or_else(|| directory.join(name));
        let any = directory.join(ANY);
        // A directory made for one registry hides from it what is said of all.
        let (own, server) = if !own.exists() && is_somebodys(&any) {
            (any, None)
        } else {
            (own, target.server.as_deref())
        };
        let beside = certificates(&own);
        Wanted {
            path: own.join(FILE),
            made: Box::new(move |text: &str| hosts::with_entry(text, &self.url(), server, &beside)),
        }
    }

    /// Registries of which no other file says where they are, and those of which one does.
    fn free(&self, directory: &Path) -> (Vec<&Target>, Vec<(PathBuf, FileError)>) {
        let own = directory.join(REGISTRIES);
        let below = own
            .parent()
            .and_then(|parent| std::fs::read_dir(parent).ok());
        let mut others: Vec<_> = below
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        others.retain(|path| *path != own && path.extension().is_some_and(|e| e == "conf"));
        others.sort();
        others.insert(0, directory.join("registries.conf"));
        let (mut free, mut taken) = (vec![], vec![]);
        for target in &self.targets {
            // Others cannot be named: a prefix is of one domain at least.
            let Some(registry) = &target.registry else {
                continue;
            };
            let who = others.iter().find(|path| {
                // One that cannot be read is its runtime's own trouble.
                let text = std::fs::read_to_string(path).unwrap_or_default();
                registries::names(&text, registry).unwrap_or(false)
            });
            match who {
                None => free.push(target),
                Some(path) => {
                    let mirror = format!("{}/{registry}", self.mirror);
                    let error = FileError::Taken(path.clone(), registry.clone(), mirror);
                    taken.push((path.clone(), error));
                }
            }
        }
        (free, taken)
    }
}

impl Wanted<'_> {
    /// What the file has to be.
    fn change(&self) -> Result<(Change, String), FileError> {
        let found = read(&self.path)?;
        let text = found.as_deref().unwrap_or_default();
        let made = (self.made)(text).map_err(|e| FileError::Unsound(self.path.clone(), e))?;
        let change = match &found {
            Some(found) if *found == made => Change::Nothing,
            Some(_) => Change::Changed,
            None if made.is_empty() => Change::Nothing,
            None => Change::Made,
        };
        Ok((change, made))
    }

    fn write(&self) -> Result<Change, FileError> {
        let (change, made) = self.change()?;
        if change == Change::Nothing {
            return Ok(change);
        }
        let (path, backup) = (&self.path, backup(&self.path));
        if let Some(found) = read(path)?
            && !hosts::has_entry(&found)
            && !backup.exists()
        {
            write(&backup, &found, mode(path))?;
        }
        write(path, &made, mode(path))?;
        Ok(change)
    }
}

/// The certificates in a directory of `certs.d`.
fn certificates(directory: &Path) -> Certificates {
    let found = std::fs::read_dir(directory);
    let files = found.into_iter().flatten().flatten();
    let files = files.filter(|entry| !entry.path().is_dir());
    Certificates::among(
        files
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect(),
    )
}

/// Whether a directory of `certs.d` says anything that is not dragonfly's.
fn is_somebodys(directory: &Path) -> bool {
    let said = match read(&directory.join(FILE)) {
        Ok(None) => false,
        Ok(Some(text)) => hosts::without_entry(&text).map_or(true, |text| !text.is_empty()),
        // Whose it is cannot be seen.
        Err(_) => true,
    };
    said || !certificates(directory).is_empty()
}

/// A file as it was before an entry was put into it.
fn backup(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.before-dragonfly"))
}

/// Takes an entry out that stands between marks. `made`: whether its directory goes with the file.
fn restore(path: &Path, made: fn(&str) -> bool) -> Result<Change, FileError> {
    let Some(found) = read(path)? else {
        return Ok(Change::Nothing);
    };
    if !hosts::has_entry(&found) {
        return Ok(Change::Nothing);
    }
    let wrong = |e| FileError::Unsound(path.to_owned(), e);
    let without = hosts::without_entry(&found).map_err(wrong)?;
    let backup = backup(path);
    let was_there = backup.try_exists().unwrap_or(true);
    if without.is_empty() && !was_there {
        remove(path)?;
        // Only where nobody put anything beside it.
        if let Some(directory) = path.parent().filter(|_| made(&found)) {
            let _ = std::fs::remove_dir(directory);
        }
    } else {
        // What somebody changed meanwhile stays: the backup is only as it was before.
        write(path, &without, mode(path))?;
        if was_there {
            remove(&backup)?;
        }
    }
    Ok(Change::Restored)
}

/// Docker's file says nothing of who wrote what: as it was before, unless somebody changed it since.
fn restore_docker(path: &Path, url: &str) -> Result<Change, FileError> {
    let Some(found) = read(path)? else {
        return Ok(Change::Nothing);
    };
    if !docker::has_entry(&found, url) {
        return Ok(Change::Nothing);
    }
    let wrong = |e| FileError::Unsound(path.to_owned(), e);
    let backup = backup(path);
    let before = read(&backup)?;
    let text = before.as_deref().unwrap_or_default();
    let untouched = docker::with_entry(text, url).is_ok_and(|made| made == found);
    let without = if untouched {
        before
    } else {
        docker::without_entry(&found, url).map_err(wrong)?
    };
    match without {
        Some(text) => write(path, &text, mode(path))?,
        None => remove(path)?,
    }
    remove(&backup)?;
    Ok(Change::Restored)
}

fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::Io(path.to_owned(), e)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<String>, FileError> {
    let wrong = |e| FileError::Io(path.to_owned(), e);
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MOST => {
            std::fs::read_to_string(path).map(Some).map_err(wrong)
        }
        Ok(_) => Err(FileError::NoFile(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(wrong(e)),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777)
}

/// Whole or not at all.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let new = path.with_extension("new-by-dragonfly");
    let written = (|| {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&new, text)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)
    })();
    written.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        FileError::Io(path.to_owned(), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path, registries: &[&str]) -> Entries {
        Entries {
            containerd: Some(directory.to_owned()),
            containers: None,
            docker: None,
            mirror: "127.0.0.1:4002".parse().unwrap(),
            targets: registries
                .iter()
                .map(|r| Target {
                    registry: Some((*r).to_owned()).filter(|r| !r.is_empty()),
                    server: None,
                })
                .collect(),
        }
    }

    fn changes(all: Done) -> Vec<Change> {
        all.into_iter().map(|(_, change)| change.unwrap()).collect()
    }

    #[test]
    fn uninstalling_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs.d");
        let own = certs.join("a.test:5000/hosts.toml");
        let before = "server = \"https://a.test:5000\"\n[host.\"https://a.test:5000\"]\n";
        write(&own, before, 0o640).unwrap();
        let entries = entries(&certs, &["a.test:5000", "b.test", ""]);
        let wanted = [Change::Changed, Change::Made, Change::Made];
        assert_eq!(changes(entries.plan()), wanted);
        assert_eq!(
            std::fs::read_to_string(&own).unwrap(),
            before,
            "a plan only"
        );
        assert_eq!(changes(entries.write()), wanted);
        assert_eq!(changes(entries.write()), [Change::Nothing; 3]);
        assert_eq!(mode(&own), 0o640);
        let backup = own.with_file_name("hosts.toml.before-dragonfly");
        assert_eq!(std::fs::read_to_string(&backup).unwrap(), before);
        assert_eq!(changes(entries.withdraw()), [Change::Restored; 3]);
        assert_eq!(std::fs::read_to_string(&own).unwrap(), before);
        let left: Vec<_> = std::fs::read_dir(&certs)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["a.test:5000"]);
        assert!(!backup.exists() && entries.withdraw().is_empty());
    }

    #[test]
    fn certificates_as_docker_has_them_go_on_to_count() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("a.test:5000/ca.crt");
        write(&ca, "authority", 0o644).unwrap();
        let entries = entries(dir.path(), &["a.test:5000"]);
        assert_eq!(changes(entries.write()), [Change::Made]);
        let made = std::fs::read_to_string(dir.path().join("a.test:5000/hosts.toml")).unwrap();
        // Before the first table: of the registry itself.
        let said = made.find("ca = [\"ca.crt\"]").expect(&made);
        assert!(said < made.find("[host.").unwrap(), "{made}");
        // Another one that comes meanwhile counts as it would without the entry.
        write(&ca.with_file_name("next.crt"), "authority", 0o644).unwrap();
        assert_eq!(changes(entries.write()), [Change::Changed]);
        assert_eq!(changes(entries.write()), [Change::Nothing]);
        assert_eq!(changes(entries.withdraw()), [Change::Restored]);
        let left = std::fs::read_dir(ca.parent().unwrap()).unwrap().count();
        assert_eq!(left, 2, "the two certificates");
    }

    #[test]
    fn what_somebody_says_of_all_registries_is_not_hidden_from_one() {
        let dir = tempfile::tempdir().unwrap();
        let any = dir.path().join("_default/hosts.toml");
        let corporate = "[host.\"https://proxy.test\"]\n";
        write(&any, corporate, 0o644).unwrap();
        write(&dir.path().join("own.test/hosts.toml"), "# mine\n", 0o644).unwrap();
        let mut entries = entries(dir.path(), &["docker.io", "a.test", "own.test"]);
        entries.targets[1].server = Some("http://a:5000".to_owned());
        let paths = |done: &Done| -> Vec<_> {
            let below =
                |(path, _): &(PathBuf, _)| path.strip_prefix(dir.path()).unwrap().to_owned();
            done.iter().map(below).collect()
        };
        let done = entries.write();
        let wanted = ["_default/hosts.toml", "own.test/hosts.toml"];
        assert_eq!(paths(&done), wanted.map(PathBuf::from));
        let both = std::fs::read_to_string(&any).unwrap();
        let (mirror, proxy) = (both.find("127.0.0.1:4002"), both.find("proxy.test"));
        assert!(
            mirror.unwrap() < proxy.unwrap() && !both.contains("http://a:5000"),
            "{both}"
        );
        assert_eq!(changes(entries.write()), [Change::Nothing; 2]);
        assert_eq!(changes(entries.withdraw()), [Change::Restored; 2]);
        assert_eq!(std::fs::read_to_string(&any).unwrap(), corporate);
        assert!(!dir.path().join("docker.io").exists());
        // An entry that is dragonfly's alone says nothing that could be hidden.
        std::fs::remove_dir_all(dir.path().join("_default")).unwrap();
        entries.targets.insert(
            0,
            Target {
                registry: None,
                server: None,
            },
        );
        assert_eq!(changes(entries.write()).len(), 4);
        assert_eq!(changes(entries.write()), [Change::Nothing; 4]);
    }

    #[test]
    fn what_somebody_changes_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a.test/hosts.toml");
        let entries = entries(dir.path(), &["a.test"]);
        entries.write();
        let mut text = std::fs::read_to_string(&own).unwrap();
        text.push_str("[host.\"https://added.test\"]\n");
        std::fs::write(&own, text).unwrap();
        assert_eq!(changes(entries.write()), [Change::Nothing]);
        assert_eq!(changes(entries.withdraw()), [Change::Restored]);
        let left = std::fs::read_to_string(&own).unwrap();
        assert_eq!(left, "[host.\"https://added.test\"]\n");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_and_keeps_no_other_from_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let broken = dir.path().join("a.test/hosts.toml");
        write(&broken, "server = ", 0o644).unwrap();
        let link = dir.path().join("b.test/hosts.toml");
        std::fs::create_dir(dir.path().join("b.test")).unwrap();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let written = entries(dir.path(), &["a.test", "b.test", "c.test"]).write();
        let errors: Vec<_> = written
            .iter()
            .map(|(_, change)| change.as_ref().map_err(ToString::to_string))
            .collect();
        assert!(
            errors[0]
                .as_ref()
                .unwrap_err()
                .contains("a.test/hosts.toml")
        );
        assert!(errors[1].as_ref().unwrap_err().contains("link"));
        assert_eq!(errors[2].as_ref().ok(), Some(&&Change::Made));
        assert_eq!(std::fs::read_to_string(&broken).unwrap(), "server = ");
    }
    #[test]
    fn other_runtimes_files_are_owned_and_restored_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("containers")).unwrap();
        std::fs::create_dir_all(at("docker")).unwrap();
        // What a Debian has after `apt install podman docker.io`.
        let main = "unqualified-search-registries = [\"docker.io\"]\n\n[[registry]]\nlocation = \"taken.test\"\n";
        let daemon = "{ \"log-driver\": \"journald\" }";
        write(&at("containers/registries.conf"), main, 0o644).unwrap();
        write(&at("docker/daemon.json"), daemon, 0o600).unwrap();
        let entries = Entries {
            containerd: None,
            containers: Some(at("containers")),
            docker: Some(at("docker")),
            ..entries(dir.path(), &["docker.io", "taken.test", ""])
        };
        let shown = |done: Done| -> Vec<_> {
            let shown = |(path, change): (PathBuf, Result<Change, FileError>)| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, change.map_err(|e| e.to_string()))
            };
            done.into_iter().map(shown).collect()
        };
        let mut planned = shown(entries.plan()).into_iter();
        let (name, taken) = planned.next().unwrap();
        assert_eq!(name, "registries.conf");
        assert!(taken.unwrap_err().contains("127.0.0.1:4002/taken.test"));
        let rest: Vec<_> = planned.collect();
        let wanted = [
            ("999-dragonfly.conf".to_owned(), Ok(Change::Made)),
            ("daemon.json".to_owned(), Ok(Change::Changed)),
        ];
        assert_eq!(rest, wanted);
        assert!(!at("containers/registries.conf.d").exists(), "a plan only");
        assert_eq!(shown(entries.write())[1..], wanted);
        let again = shown(entries.write());
        assert!(again[1..].iter().all(|(_, c)| *c == Ok(Change::Nothing)));
        let made = std::fs::read_to_string(at("containers/registries.conf.d/999-dragonfly.conf"));
        let made = made.unwrap();
        assert!(
            made.contains("docker.io") && !made.contains("taken.test"),
            "{made}"
        );
        let told = std::fs::read_to_string(at("docker/daemon.json")).unwrap();
        assert!(told.contains("http://127.0.0.1:4002") && told.contains("journald"));
        assert_eq!(mode(&at("docker/daemon.json")), 0o600);
        assert_eq!(changes(entries.withdraw()), [Change::Restored; 2]);
        assert!(
            !at("containers/registries.conf.d").exists(),
            "made with the entry"
        );
        let restored = std::fs::read_to_string(at("docker/daemon.json")).unwrap();
        assert_eq!(restored, daemon);
        assert!(!at("docker/daemon.json.before-dragonfly").exists());
        assert!(entries.withdraw().is_empty());

        // A directory that was there stays, and so does what somebody changes meanwhile.
        std::fs::create_dir(at("containers/registries.conf.d")).unwrap();
        entries.write();
        let changed = "{\"registry-mirrors\":[\"http://127.0.0.1:4002\"],\"debug\":true}";
        std::fs::write(at("docker/daemon.json"), changed).unwrap();
        entries.withdraw();
        assert!(at("containers/registries.conf.d").is_dir());
        let left = std::fs::read_to_string(at("docker/daemon.json")).unwrap();
        assert_eq!(left, "{\n  \"debug\": true\n}\n");

        // What was not there before is not there afterwards.
        std::fs::remove_file(at("docker/daemon.json")).unwrap();
        entries.write();
        assert!(at("docker/daemon.json").is_file());
        entries.withdraw();
        assert_eq!(std::fs::read_dir(at("docker")).unwrap().count(), 0);
    }
}
