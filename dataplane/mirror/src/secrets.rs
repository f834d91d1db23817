//! Pull secrets: `config.json` as Docker and Kubernetes have it, read from files.
//!
//! Invariants: a secret is in memory only, wiped when it is dropped, and shown by nobody's `Debug`; what
//! an entry is for is judged as the kubelet does, host by host and the path by whole parts.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;
use zeroize::Zeroizing;

/// Nobody's is longer: Kubernetes takes no Secret above a mebibyte.
const MOST: u64 = 1 << 20;
/// What a Secret's key is called, by its type; and a plain file.
const NAMES: [&str; 3] = [".dockerconfigjson", ".dockercfg", "config.json"];
/// Names of Docker Hub in such files.
const DOCKER_HUB: [&str; 4] = [
    "docker.io",
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

/// What one shows to a registry or to its token service.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// User and password: a robot's, `_json_key` and a key, `AWS` and a token, and so on.
    Password(String, Zeroizing<String>),
    /// A token that the token service gives others for.
    Refresh(Zeroizing<String>),
    /// A token for the registry itself.
    Bearer(Zeroizing<String>),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password(…)",
            Self::Refresh(_) => "Refresh(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

impl Login {
    /// `Authorization` of a user and a password.
    pub(crate) fn basic(user: &str, password: &str) -> Zeroizing<String> {
        let plain = Zeroizing::new(format!("{user}:{password}"));
        Zeroizing::new(format!("Basic {}", STANDARD.encode(plain.as_bytes())))
    }

    /// Bytes that differ where logins do.
    pub(crate) fn identity(&self) -> Zeroizing<String> {
        match self {
            Self::Password(user, password) => Self::basic(user, password),
            Self::Refresh(token) => Zeroizing::new(format!("Refresh {}", **token)),
            Self::Bearer(token) => Zeroizing::new(format!("Bearer {}", **token)),
        }
    }
}

/// For whom an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct For {
    host: String,
    /// Parts of the repository's name that it begins with.
    path: Vec<String>,
}

/// What files hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Vec<(For, Login)>);

impl Secrets {
    /// Reads one file's text. What is no entry is left out.
    ///
    /// # Errors
    /// Which part is not as it should be; never with its text.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            format!("it is no JSON (line {line}, column {column})")
        })?;
        // The older form is the inner part alone.
        let entries = all.get("auths").unwrap_or(&all);
        let entries = entries.as_object().ok_or("it is no map of registries")?;
        let mut found = vec![];
        for (name, entry) in entries {
            let Some(login) = login(entry)? else {
                continue;
            };
            found.push((place(name), login));
        }
        Ok(Self(found))
    }

    /// The files of a directory: `NAME/.dockerconfigjson` of each Secret that is mounted there. One that
    /// cannot be read is said and left out.
    pub(crate) fn load(directory: &Path) -> (Self, Vec<(PathBuf, String)>) {
        let (mut all, mut wrong) = (vec![], vec![]);
        let mut below: Vec<_> = std::fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        below.sort();
        let files = below
            .iter()
            .flat_map(|dir| NAMES.iter().map(move |name| dir.join(name)));
        for file in files {
            match std::fs::metadata(&file) {
                Ok(found) if found.is_file() && found.len() <= MOST => {}
                Ok(_) => {
                    wrong.push((file, "it is no file of at most 1 MiB".to_owned()));
                    continue;
                }
                Err(_) => continue,
            }
            let text = std::fs::read_to_string(&file).map(Zeroizing::new);
            match text
                .map_err(|e| e.to_string())
                .and_then(|text| Self::read(&text))
            {
                Ok(found) => all.extend(found.0),
                Err(why) => wrong.push((file, why)),
            }
        }
        (Self(all), wrong)
    }

    /// What is for a repository of a registry; the entry that names most of it.
    pub(crate) fn of(&self, registry: &str, repository: &str) -> Option<&Login> {
        let parts: Vec<&str> = repository.split('/').collect();
        let fits = self.0.iter().filter(|(to, _)| {
            same_host(&to.host, registry)
                && to.path.len() <= parts.len()
                && to.path.iter().zip(&parts).all(|(a, b)| a == b)
        });
        let rank = |to: &For| (to.path.len(), !to.host.contains('*'));
        // Of equal ones the first.
        fits.rev()
            .max_by_key(|(to, _)| rank(to))
            .map(|(_, login)| login)
    }
}

/// An entry's login; `None` where it has none (credentials of a helper program, for example).
fn login(entry: &Value) -> Result<Option<Login>, String> {
    let text = |field: &str| {
        let text = entry.get(field).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
    };
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Login::Bearer(Zeroizing::new(token.to_owned()))));
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Login::Refresh(Zeroizing::new(token.to_owned()))));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        let password = Zeroizing::new(password.to_owned());
        return Ok(Some(Login::Password(user.to_owned(), password)));
    }
    let Some(auth) = text("auth") else {
        return Ok(None);
    };
    let plain = auth.trim_end_matches('=');
    let plain = STANDARD_NO_PAD
        .decode(plain)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(Zeroizing::new)
        .ok_or("an `auth` is no base64 of text")?;
    let (user, password) = plain
        .split_once(':')
        .ok_or("an `auth` is not user:password")?;
    // Some clients end it with a zero byte.
    let password = password.trim_matches('\0').to_owned();
    Ok(Some(Login::Password(
        user.to_owned(),
        Zeroizing::new(password),
    )))
}

/// `https://index.docker.io/v1/`, `registry.test:5000`, `registry.test/team`, `*.azurecr.io`.
fn place(name: &str) -> For {
    let name = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))
        .unwrap_or(name);
    let mut parts = name.split('/').filter(|part| !part.is_empty());
    let host = parts.next().unwrap_or_default().to_ascii_lowercase();
    let mut path: Vec<_> = parts.map(str::to_owned).collect();
    // The API's own path, as older files have it.
    if path
        .first()
        .is_some_and(|part| part == "v1" || part == "v2")
    {
        path.remove(0);
    }
    For { host, path }
}

fn same_host(pattern: &str, registry: &str) -> bool {
    if DOCKER_HUB.contains(&pattern) && DOCKER_HUB.contains(&registry) {
        return true;
    }
    let port = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
    let (ours, theirs) = (port(pattern), port(registry));
    let bare = |host: &str| {
        host.rsplit_once(':')
            .map_or(host, |(host, _)| host)
            .to_owned()
    };
    let (pattern, registry) = (bare(pattern), bare(registry));
    let (a, b): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), registry.split('.').collect());
    ours == theirs
        && a.len() == b.len()
        && a.iter().zip(&b).all(|(a, b)| match a.split_once('*') {
            None => a == b,
            Some((before, after)) => {
                b.len() >= before.len() + after.len() && b.starts_with(before) && b.ends_with(after)
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(secrets: &Secrets, registry: &str, repository: &str) -> Option<String> {
        let login = secrets.of(registry, repository)?;
        Some(match login {
            Login::Password(user, password) => format!("{user}:{}", **password),
            Login::Refresh(token) => format!("refresh {}", **token),
            Login::Bearer(token) => format!("bearer {}", **token),
        })
    }

    #[test]
    fn entries_are_found_as_the_kubelet_finds_them() {
        let text = serde_json::json!({"auths": {
            // As `docker login` writes it, `anna:secret`.
            "https://index.docker.io/v1/": {"auth": "YW5uYTpzZWNyZXQ="},
            "registry.test:5000": {"username": "all", "password": "p"},
            "registry.test:5000/team": {"username": "team", "password": "p"},
            "registry.test:5000/team/app": {"username": "app", "password": "p"},
            "*.azurecr.io": {"identitytoken": "t", "auth": "MDAwMDo="},
            "own.azurecr.io": {"auth": "dTpw"},
            "*.dkr.ecr.*.amazonaws.com": {"username": "AWS", "password": "token:with:colons"},
            "token.test": {"registrytoken": "r"},
            "helper.test": {},
        }});
        let secrets = Secrets::read(&text.to_string()).unwrap();
        let rows = [
            ("docker.io", "library/alpine", Some("anna:secret")),
            ("registry.test:5000", "other", Some("all:p")),
            ("registry.test:5000", "teams/app", Some("all:p")),
            ("registry.test:5000", "team/x", Some("team:p")),
            ("registry.test:5000", "team/app/y", Some("app:p")),
            ("registry.test", "team/app", None),
            ("registry.test:5001", "team/app", None),
            ("some.azurecr.io", "a", Some("refresh t")),
            ("own.azurecr.io", "a", Some("u:p")),
            ("a.b.azurecr.io", "a", None),
            ("azurecr.io", "a", None),
            (
                "1234.dkr.ecr.eu-west-1.amazonaws.com",
                "a",
                Some("AWS:token:with:colons"),
            ),
            ("token.test", "a", Some("bearer r")),
            ("helper.test", "a", None),
        ];
        for (registry, repository, login) in rows {
            let found = of(&secrets, registry, repository);
            assert_eq!(found.as_deref(), login, "{registry}/{repository}");
        }
        let older = r#"{"https://a.test/v2/": {"auth": "dTpwAA=="}}"#;
        let older = Secrets::read(older).unwrap();
        assert_eq!(of(&older, "a.test", "x").as_deref(), Some("u:p"));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_it_holds() {
        for text in [
            "hunter2",
            r#"{"auths": ["hunter2"]}"#,
            r#"{"auths": {"a": {"auth": "hunter2hunter2!"}}}"#,
            r#"{"auths": {"a": {"auth": "aHVudGVyMg=="}}}"#,
        ] {
            let said = Secrets::read(text).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
        let secrets = Secrets::read(r#"{"a.test": {"username": "u", "password": "hunter2"}}"#);
        assert!(!format!("{:?}", secrets.unwrap()).contains("hunter2"));
    }

    #[test]
    fn every_mounted_secret_counts_and_a_broken_one_keeps_none_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let below = dir.path().join(name);
            std::fs::create_dir(&below).unwrap();
            std::fs::write(below.join(".dockerconfigjson"), text).unwrap();
        };
        file("a", r#"{"auths": {"a.test": {"auth": "dTpw"}}}"#);
        file("b", "{");
        file("c", r#"{"auths": {"c.test": {"auth": "dTpw"}}}"#);
        let (found, wrong) = Secrets::load(dir.path());
        assert!(found.of("a.test", "x").is_some() && found.of("c.test", "x").is_some());
        let [(path, why)] = wrong.as_slice() else {
            panic!("{wrong:?}");
        };
        assert!(path.ends_with("b/.dockerconfigjson") && why.contains("no JSON"));
        let (none, wrong) = Secrets::load(&dir.path().join("nowhere"));
        assert!(none.of("a.test", "x").is_none() && wrong.is_empty());
    }
}
