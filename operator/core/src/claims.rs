//! Who has which ports and directories of which nodes.
//!
//! Two meshes may not share a port or a directory of one node. Which nodes a selector will select one
//! day nobody knows, so two selectors are taken to meet unless they ask for different values of one
//! label: whether a mesh may run never depends on which nodes there happen to be.
//!
//! Invariant: of two that want the same the older one has it, then the one whose namespace and name
//! come first; all operators and all restarts decide alike.

use std::collections::BTreeMap;

use dragonfly_crds::Distribution;
use dragonfly_crds::mirror::ContainerRuntime;
use dragonfly_crds::placement::{Location, PEER_DIRECTORY};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What pods of one part want of each node that they run on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// The field that selects the nodes.
    selected_by: &'static str,
    selector: BTreeMap<String, String>,
    ports: Vec<(&'static str, i32)>,
    directories: Vec<(&'static str, String)>,
}

/// What a mesh wants of nodes.
#[derive(Clone, Debug)]
pub struct Claim {
    created: Option<Time>,
    /// Namespace and name.
    key: (String, String),
    places: Vec<Place>,
}

impl Claim {
    /// What a Distribution wants.
    pub fn of(distribution: &Distribution) -> Self {
        let meta = &distribution.metadata;
        Self {
            created: meta.creation_timestamp.clone(),
            key: (
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            places: places(distribution),
        }
    }

    fn goes_before(&self, other: &Self) -> bool {
        // Who has no age was not created yet.
        let age = |claim: &Self| {
            let created = claim.created.as_ref().map(|time| time.0);
            (created.is_none(), created)
        };
        (age(self), &self.key) < (age(other), &other.key)
    }
}

fn places(distribution: &Distribution) -> Vec<Place> {
    let spec = &distribution.spec;
    let peers = &spec.peers;
    let mut directories = vec![("spec.peers.socketDirectory", peers.socket_directory.clone())];
    if peers.storage.empty_dir.is_none() {
        let path = peers.storage.host_path.as_ref().map(|p| p.path.clone());
        directories.push((
            "spec.peers.storage.hostPath.path",
            path.unwrap_or_else(|| PEER_DIRECTORY.to_owned()),
        ));
    }
    let mut ports = vec![
        ("spec.peers.port", peers.port),
        ("spec.peers.adminPort", peers.admin_port),
    ];
    ports.extend(spec.mirror.as_ref().map(|m| ("spec.mirror.port", m.port)));
    // A container runtime is told of one mirror.
    let telling = spec.mirror.as_ref();
    if let Some(mirror) = telling.filter(|m| m.told_percent().is_some()) {
        directories.extend(mirror.runtimes.iter().map(|runtime| match runtime {
            ContainerRuntime::Containerd => (
                "spec.mirror.containerdDirectory",
                mirror.containerd_directory.clone(),
            ),
            ContainerRuntime::Containers => ("spec.mirror.runtimes", "/etc/containers".to_owned()),
            ContainerRuntime::Docker => ("spec.mirror.runtimes", "/etc/docker".to_owned()),
        }));
    }
    let mut places = vec![Place {
        selected_by: "spec.peers.pods.nodeSelector",
        selector: peers.pods.node_selector.clone(),
        ports,
        directories,
    }];
    let seeds = &spec.seeds;
    if let (Location::Internal, Some(path)) = (seeds.location, &seeds.storage.host_path) {
        places.push(Place {
            selected_by: "spec.seeds.pods.nodeSelector",
            selector: seeds.pods.node_selector.clone(),
            ports: vec![],
            directories: vec![("spec.seeds.storage.hostPath.path", path.path.clone())],
        });
    }
    places
}

/// What two parts of one mesh both want of a node.
pub fn within(distribution: &Distribution) -> Option<String> {
    let places = places(distribution);
    let [peers, seeds] = places.as_slice() else {
        return None;
    };
    let (_, theirs, _) = meet(seeds, peers)?;
    Some(format!("is taken by {theirs} on the same nodes"))
}

/// Why a mesh may not run: another one that goes before it wants the same of the same nodes.
pub fn taken<'a>(own: &Claim, others: impl IntoIterator<Item = &'a Claim>) -> Option<String> {
    let mut before: Vec<_> = others
        .into_iter()
        .filter(|other| other.key != own.key && other.goes_before(own))
        .collect();
    before.sort_by(|a, b| {
        if a.goes_before(b) {
            std::cmp::Ordering::Less
        } else {
            std::cmp::Ordering::Greater
        }
    });
    before.into_iter().find_map(|other| {
        let pairs = own
            .places
            .iter()
            .flat_map(|mine| other.places.iter().map(move |theirs| (mine, theirs)));
        let (mine, value, selected_by) = pairs
            .filter_map(|(mine, theirs)| {
                let (mine_field, _, value) = meet(mine, theirs)?;
                Some((mine_field, value, mine.selected_by))
            })
            .next()?;
        let (namespace, name) = &other.key;
        Some(format!(
            "{mine}: {value} is taken on the same nodes by Distribution {namespace}/{name}, which is \
             older; choose another, or nodes that differ in a label ({selected_by})"
        ))
    })
}

/// The first thing that both want: the field of each, and the value.
fn meet(mine: &Place, theirs: &Place) -> Option<(&'static str, &'static str, String)> {
    let apart = mine.selector.iter().any(|(label, value)| {
        theirs
            .selector
            .get(label)
            .is_some_and(|other| other != value)
    });
    if apart {
        return None;
    }
    for (field, port) in &mine.ports {
        if let Some((other, _)) = theirs.ports.iter().find(|(_, taken)| taken == port) {
            return Some((field, other, port.to_string()));
        }
    }
    for (field, directory) in &mine.directories {
        let other = theirs
            .directories
            .iter()
            .find(|(_, taken)| contains(taken, directory) || contains(directory, taken));
        if let Some((other, _)) = other {
            return Some((field, other, directory.clone()));
        }
    }
    None
}

fn contains(outer: &str, inner: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(name: &str, second: i64, change: impl FnOnce(&mut Distribution)) -> Claim {
        let mut distribution = Distribution::new(name, Default::default());
        distribution.metadata.namespace = Some("x".to_owned());
        let time = jiff::Timestamp::from_second(second).unwrap();
        distribution.metadata.creation_timestamp = Some(Time(time));
        change(&mut distribution);
        Claim::of(&distribution)
    }

    fn pool(value: &str) -> impl FnOnce(&mut Distribution) {
        let selector = [("pool".to_owned(), value.to_owned())].into();
        move |d| d.spec.peers.pods.node_selector = selector
    }

    #[test]
    fn of_two_that_want_the_same_the_older_has_it_then_the_first_by_name() {
        let (old, new, twin) = (
            mesh("b", 1, |_| ()),
            mesh("a", 2, |_| ()),
            mesh("c", 1, |_| ()),
        );
        let all = [old.clone(), new.clone(), twin.clone()];
        assert_eq!(taken(&old, &all), None);
        assert!(taken(&new, &all).unwrap().contains("x/b"));
        assert!(taken(&twin, &all).unwrap().contains("x/b"));
    }

    #[test]
    fn nodes_that_differ_in_a_label_are_not_shared() {
        let (gpu, cpu, any) = (
            mesh("a", 1, pool("gpu")),
            mesh("b", 2, pool("cpu")),
            mesh("c", 3, |_| ()),
        );
        assert_eq!(taken(&cpu, [&gpu]), None);
        assert!(taken(&any, [&gpu, &cpu]).unwrap().contains("4000"));
    }

    #[test]
    fn other_ports_and_directories_let_two_meshes_share_nodes() {
        let first = mesh("a", 1, |_| ());
        type Change = fn(&mut Distribution);
        let rows: [(Change, Option<&str>); 4] = [
            (
                |d| d.spec.peers.port = 5000,
                Some("spec.peers.adminPort: 4001"),
            ),
            (
                |d| (d.spec.peers.port, d.spec.peers.admin_port) = (5000, 5001),
                Some("spec.peers.socketDirectory: /run/dragonfly"),
            ),
            (
                |d| {
                    (d.spec.peers.port, d.spec.peers.admin_port) = (5000, 5001);
                    d.spec.peers.socket_directory = "/run/dragonfly/b".to_owned();
                },
                Some("spec.peers.socketDirectory: /run/dragonfly/b"),
            ),
            (
                |d| {
                    (d.spec.peers.port, d.spec.peers.admin_port) = (5000, 5001);
                    d.spec.peers.socket_directory = "/run/dragonfly-b".to_owned();
                    d.spec.peers.storage.empty_dir = Some(Default::default());
                },
                None,
            ),
        ];
        for (change, wanted) in rows {
            let said = taken(&mesh("b", 2, change), [&first]);
            match wanted {
                Some(wanted) => assert!(said.as_ref().unwrap().starts_with(wanted), "{said:?}"),
                None => assert_eq!(said, None),
            }
        }
    }

    #[test]
    fn seeds_and_peers_of_one_mesh_do_not_share_a_directory() {
        let mut distribution = Distribution::new("a", Default::default());
        let path = |path: &str| {
            Some(dragonfly_crds::placement::HostPath {
                path: path.to_owned(),
            })
        };
        distribution.spec.seeds.storage.host_path = path("/var/lib/dragonfly");
        assert!(within(&distribution).is_some());
        distribution.spec.seeds.storage.host_path = path("/var/lib/dragonfly-seed");
        assert_eq!(within(&distribution), None);
    }
}
