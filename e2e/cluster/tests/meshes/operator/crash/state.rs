//! What an operator left in a namespace, without what is another in each.

use std::collections::BTreeMap;

use dragonfly_cluster::Place;
use dragonfly_crds::Distribution;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::Value;

use crate::operator::several::everything;

/// Everything of a namespace, without what is another in each: by kind and name.
pub(crate) async fn state(place: &Place) -> BTreeMap<String, Value> {
    let own = Own::of(place).await;
    let mut all = BTreeMap::new();
    for (kind, objects) in everything(place).await {
        for object in objects {
            let name = format!("{kind} {}", object.name_any());
            let mut value = serde_json::to_value(&object).unwrap();
            own.take_out(&mut value);
            all.insert(name, value);
        }
    }
    all
}

/// What is a mesh's own: names, numbers, addresses and keys, and what is put for them.
struct Own(Vec<(String, String)>);

impl Own {
    async fn of(place: &Place) -> Self {
        let mut words = vec![(place.namespace.clone(), "NAMESPACE".to_owned())];
        let meshes: Api<Distribution> = place.api();
        let mesh = meshes.get("default").await.unwrap();
        words.push((mesh.uid().unwrap(), "UID".to_owned()));
        let services: Api<Service> = place.api();
        for service in services.list(&Default::default()).await.unwrap() {
            let name = service.name_any();
            for ip in service.spec.unwrap().cluster_ips.into_iter().flatten() {
                words.push((ip, format!("IP of {name}")));
            }
        }
        // Longer ones first: none is found within another.
        words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        Self(words)
    }

    fn take_out(&self, value: &mut Value) {
        /// Times, versions, and what follows from keys and from the mesh's identity.
        const TAKEN: [&str; 12] = [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "time",
            "lastTransitionTime",
            "startTime",
            "lastRunTime",
            "hash",
            "d7y.io/ca-since",
            "d7y.io/ca-next-since",
            "d7y.io/authority",
            "d7y.io/applied",
        ];
        match value {
            Value::Object(map) => {
                for (key, mut value) in std::mem::take(map) {
                    match &mut value {
                        // Which keys there are counts.
                        Value::Object(inner) if key == "data" => {
                            inner.values_mut().for_each(|value| *value = Value::Null);
                        }
                        _ if TAKEN.contains(&key.as_str()) => value = Value::Null,
                        _ => self.take_out(&mut value),
                    }
                    // In the order of their times, which are not ours.
                    if let Value::Array(all) = &mut value
                        && key == "managedFields"
                    {
                        all.sort_by_key(ToString::to_string);
                    }
                    // Of managed fields identities are in keys.
                    map.insert(self.put(&key), value);
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| self.take_out(value)),
            Value::String(text) => *text = self.put(text),
            _ => {}
        }
    }

    /// A text without what is a mesh's own.
    fn put(&self, text: &str) -> String {
        let words = self.0.iter();
        words.fold(text.to_owned(), |text, (word, put)| text.replace(word, put))
    }
}

/// Where a state is not as wanted.
pub(crate) fn difference(
    wanted: &BTreeMap<String, Value>,
    is: &BTreeMap<String, Value>,
) -> Option<String> {
    for (name, wanted) in wanted {
        match is.get(name) {
            None => return Some(format!("{name} is missing")),
            Some(is) if is != wanted => {
                return Some(format!("{name}: {}", unlike(wanted, is).join("\n")));
            }
            Some(_) => {}
        }
    }
    is.keys()
        .find(|name| !wanted.contains_key(*name))
        .map(|name| format!("{name} is too many"))
}

/// Lines of one and not of the other.
fn unlike(wanted: &Value, is: &Value) -> Vec<String> {
    let texts = [format!("{wanted:#}"), format!("{is:#}")];
    let [wanted, is] = [&texts[0], &texts[1]].map(|text| text.lines().collect::<Vec<_>>());
    let missing = wanted.iter().filter(|line| !is.contains(line));
    let more = is.iter().filter(|line| !wanted.contains(line));
    let missing = missing.map(|line| format!("- {}", line.trim()));
    missing
        .chain(more.map(|line| format!("+ {}", line.trim())))
        .collect()
}
