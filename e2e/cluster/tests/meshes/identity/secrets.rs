//! Where secrets are: the memory of every part, disks, logs, metrics and objects are looked through for
//! each of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use dragonfly_cluster::pod;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};

use super::mesh::{NAME, Standing};

/// What is looked for, by its name, in all spellings that it may have.
type Needles = BTreeMap<String, Vec<Vec<u8>>>;

/// A process of a part.
struct Part {
    /// `operator`, `scheduler`, `seed`, `peer NODE`.
    name: String,
    pid: u32,
    pod: Pod,
}

pub(crate) async fn secrets_are_where_they_are_needed_and_nowhere_else(standing: &Standing) {
    let nodes: Vec<_> = standing.cluster.nodes().collect();
    let parts = parts(standing).await;
    assert!(parts.len() >= 5, "operator, scheduler, seed and two peers");

    // Somebody's credentials for an origin, shown by a client of the first node.
    let shown = format!("Bearer {}", random());
    let file = tempfile::NamedTempFile::new_in(nodes[0].path(Path::new("/run"))).unwrap();
    std::fs::write(file.path(), format!("Authorization: {shown}\n")).unwrap();
    let headers = ["--header-file", file.path().to_str().unwrap()];
    let got = standing.get(&nodes[0], "private", &headers).await;
    assert!(
        got.status.success(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );

    let needles = needles(standing, &shown, &parts).await;
    let found: BTreeMap<String, Vec<&str>> = parts
        .iter()
        .map(|part| (part.name.clone(), in_memory(part.pid, &needles)))
        .collect();
    for (part, secrets) in &found {
        eprintln!("in the memory of {part}: {secrets:?}");
    }
    // The search finds what has to be there: a search that finds nothing proves nothing.
    assert!(found["operator"].contains(&"CA key"), "{found:?}");
    assert!(found["scheduler"].contains(&"signing key"), "{found:?}");
    assert!(found["seed"].contains(&"opening key"), "{found:?}");

    let allowed = |part: &str| -> Vec<&str> {
        let mut all = by_role(part);
        let own = needles
            .keys()
            .find(|name| **name == format!("key of {part}"));
        all.extend(own.map(String::as_str));
        all
    };
    for (part, secrets) in &found {
        let known = allowed(part);
        let wrong: Vec<_> = secrets.iter().filter(|s| !known.contains(s)).collect();
        assert!(wrong.is_empty(), "{part} has {wrong:?} in its memory");
    }
    // Keys are looked for as they were when the search began; some part was given another meanwhile.
    let of_own = |(part, all): (&String, &Vec<&str>)| all.contains(&&*format!("key of {part}"));
    assert!(found.iter().any(of_own), "{found:?}");

    nowhere_else(standing, &parts, &needles).await;
}

/// What a part may have besides its own key.
fn by_role(part: &str) -> Vec<&'static str> {
    match part.split(' ').next().unwrap() {
        "operator" => vec![
            "CA key",
            "signing key",
            "join secret",
            "token",
            "opening key",
        ],
        // What a client showed passes through, sealed.
        "scheduler" => vec!["signing key"],
        // Who fetches for a client has what the client showed, while its connection to the origin lasts.
        "seed" => vec!["opening key", "credentials"],
        // Tokens and credentials are shown on connections that end with the answer, and memory is wiped
        // when it is given back.
        _ => vec![],
    }
}

fn random() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(40)
        .collect()
}

async fn nowhere_else(standing: &Standing, parts: &[Part], needles: &Needles) {
    // Disks: of the node, but what the kubelet and the runtime keep for pods' own mounts.
    for node in standing.cluster.nodes() {
        for dir in ["/var/lib/dragonfly", "/run/dragonfly"] {
            in_files(&node.path(Path::new(dir)), needles);
        }
    }
    for part in parts {
        let name = part.pod.name_any();
        // What a process can write to, seen as it sees it.
        for dir in ["var/lib/dragonfly", "tmp", "run/dragonfly"] {
            let root = PathBuf::from(format!("/proc/{}/root/{dir}", part.pid));
            in_files(&root, needles);
        }
        let log = pod::log(standing.client(), standing.namespace(), &name)
            .await
            .unwrap();
        none_in(&format!("the log of {name}"), log.as_bytes(), needles);
        let environment = std::fs::read(format!("/proc/{}/environ", part.pid)).unwrap();
        let line = std::fs::read(format!("/proc/{}/cmdline", part.pid)).unwrap();
        none_in(&format!("the environment of {name}"), &environment, needles);
        none_in(&format!("the command line of {name}"), &line, needles);
    }
    metrics(standing, parts, needles).await;
    // Objects, but Secrets.
    for (group, version, kind) in [
        ("d7y.io", "v1alpha1", "Distribution"),
        ("", "v1", "ConfigMap"),
        ("", "v1", "Pod"),
        ("", "v1", "Service"),
        ("apps", "v1", "Deployment"),
        ("apps", "v1", "DaemonSet"),
        ("coordination.k8s.io", "v1", "Lease"),
        ("events.k8s.io", "v1", "Event"),
    ] {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(standing.client().clone(), standing.namespace(), &kind);
        let all = api.list(&ListParams::default()).await.unwrap();
        let text = serde_json::to_vec(&all).unwrap();
        none_in(&format!("objects of kind {}", kind.kind), &text, needles);
    }
}

async fn metrics(standing: &Standing, parts: &[Part], needles: &Needles) {
    let node = standing.cluster.nodes().next().unwrap();
    for part in parts {
        let port = match part.name.split(' ').next().unwrap() {
            "operator" => 8080,
            "scheduler" => 8003,
            "seed" => 4001,
            _ => 4001,
        };
        let status = part.pod.status.as_ref().unwrap();
        let address = status.pod_ip.as_deref().unwrap();
        let url = format!("http://{address}:{port}/metrics");
        let got = node
            .run(&["curl", "-sf", "--max-time", "10", &url])
            .await
            .unwrap();
        assert!(got.contains("dragonfly_"), "{}: {got}", part.name);
        none_in(
            &format!("metrics of {}", part.name),
            got.as_bytes(),
            needles,
        );
    }
}

async fn parts(standing: &Standing) -> Vec<Part> {
    let mut pods = vec![];
    let labels = "app.kubernetes.io/name=dragonfly-operator";
    for pod in pod::with_labels(standing.client(), standing.namespace(), labels)
        .await
        .unwrap()
    {
        pods.push(("operator".to_owned(), pod));
    }
    for part in ["scheduler", "seed", "peer"] {
        for pod in standing.pods(part).await {
            let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
            let name = if part == "peer" {
                format!("peer {node}")
            } else {
                part.to_owned()
            };
            pods.push((name, pod));
        }
    }
    pods.into_iter()
        .map(|(name, pod)| {
            let statuses = pod.status.as_ref().unwrap().container_statuses.as_ref();
            let id = statuses.unwrap()[0].container_id.clone().unwrap();
            let id = id.rsplit('/').next().unwrap().to_owned();
            let pid = process_of(&id).unwrap_or_else(|| panic!("no process of {name}, {id}"));
            Part { name, pid, pod }
        })
        .collect()
}

/// The process of a container: the one in its cgroup that runs the program.
fn process_of(container: &str) -> Option<u32> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if cgroup.contains(container) && String::from_utf8_lossy(&line).contains("dragonfly") {
            return Some(pid);
        }
    }
    None
}

async fn needles(standing: &Standing, shown: &str, parts: &[Part]) -> Needles {
    let secrets: Api<Secret> = standing.place.api();
    let data = |secret: Secret| secret.data.unwrap_or_default();
    let authority = data(secrets.get(&format!("{NAME}-authority")).await.unwrap());
    let ca = data(secrets.get(&format!("{NAME}-ca")).await.unwrap());
    let pem = String::from_utf8(ca["ca.key"].0.clone()).unwrap();
    let signing = authority["authority.key"].0.clone();
    let secret = authority["join.secret"].0.clone();
    let mut all = Needles::new();
    let cert = String::from_utf8(ca["ca.pem"].0.clone()).unwrap();
    let opening = dragonfly_identity::Ca::read(&cert, &pem).unwrap();
    let opening = opening.opening().secret().to_vec();
    all.insert("CA key".to_owned(), ec_key(&pem));
    all.insert("opening key".to_owned(), vec![opening]);
    all.insert("signing key".to_owned(), spellings(&signing[16..48]));
    all.insert("join secret".to_owned(), spellings(&secret));
    let credentials = shown.strip_prefix("Bearer ").unwrap();
    all.insert("credentials".to_owned(), vec![credentials.into()]);
    // What a pod's processes may read and nobody else.
    let mut tokens = vec![];
    for part in parts.iter().filter(|p| p.name != "operator") {
        let path = format!("/proc/{}/root/etc/dragonfly/identity/token", part.pid);
        let token = std::fs::read_to_string(&path).unwrap();
        tokens.push(token.rsplit('.').next().unwrap().as_bytes().to_vec());
        let path = format!("/proc/{}/root/run/identity/credentials", part.pid);
        let kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let key = kept["key"].as_str().unwrap();
        all.insert(format!("key of {}", part.name), ec_key(key));
    }
    all.insert("token".to_owned(), tokens);
    all
}

/// A private key of P-256: the number itself, wherever and however it is kept, and a line of its PEM.
fn ec_key(pem: &str) -> Vec<Vec<u8>> {
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(&body)
        .unwrap();
    // In PKCS#8 it follows the bytes that say so.
    let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at = der.windows(5).position(|w| w == mark).unwrap() + 5;
    let line = pem.lines().nth(1).unwrap().as_bytes().to_vec();
    vec![der[at..at + 32].to_vec(), line]
}

/// As it is, and as JSON of Kubernetes and PEM have it.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let text = base64::engine::general_purpose::STANDARD.encode(secret);
    // Where it stands in something longer only the middle of its base64 is sure; as a whole it is.
    vec![secret.to_vec(), text.into_bytes()]
}

/// Which of the secrets are in memory that a process can write to.
fn in_memory(pid: u32, needles: &Needles) -> Vec<&str> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = vec![];
    let mut looked_at = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (address(from), address(to));
        let mut bytes = vec![0; (to - from) as usize];
        memory.seek(SeekFrom::Start(from)).unwrap();
        // Given back meanwhile.
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        looked_at += bytes.len();
        found.extend(within(&bytes, needles));
    }
    assert!(
        looked_at > 1 << 20,
        "{pid}: {looked_at} bytes were looked at"
    );
    found.sort_unstable();
    found.dedup();
    found
}

fn address(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn within<'a>(bytes: &[u8], needles: &'a Needles) -> Vec<&'a str> {
    let holds = |all: &Vec<Vec<u8>>| all.iter().any(|one| holds(bytes, one));
    let found = needles.iter().filter(|(_, all)| holds(all));
    found.map(|(name, _)| name.as_str()).collect()
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some((first, rest)) = wanted.split_first() else {
        return false;
    };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| b == first) {
        let after = from + at + 1;
        if bytes[after..].starts_with(rest) {
            return true;
        }
        from = after;
    }
    false
}

fn none_in(what: &str, bytes: &[u8], needles: &Needles) {
    let found = within(bytes, needles);
    assert!(found.is_empty(), "{what}: {found:?}");
}

/// All files below a directory, without following links and without what is mounted for a pod from
/// Secrets and tokens.
fn in_files(dir: &Path, needles: &Needles) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        // The scheduler's mounted key.
        if path.ends_with("var/lib/dragonfly/mesh") {
            continue;
        }
        if kind.is_dir() {
            in_files(&path, needles);
        } else if kind.is_file() {
            // Content is the origin's, and as large as that: what is kept beside it is small.
            let mut start = vec![];
            let file = File::open(&path).unwrap();
            file.take(1 << 20).read_to_end(&mut start).unwrap();
            none_in(&path.display().to_string(), &start, needles);
        }
    }
}
