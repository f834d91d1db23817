//! The replicas that a scheduler is told of.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dragonfly_proto::rpc::Replica;

use super::RoleError;

/// The other replicas, from `name=host:port` each. Contents belong to replicas by their names, so that each
/// needs one that no other has, and an address that others reach.
///
/// # Errors
/// What is said wrong, and how to say it.
pub(crate) fn others(
    said: &[String],
    listen: SocketAddr,
    advertise: Option<&str>,
    name: Option<&str>,
) -> Result<Vec<Replica>, RoleError> {
    if !said.is_empty() && advertise.is_none() && listen.ip().is_unspecified() {
        let text = "with --replica others have to reach this one: --advertise host:port";
        return Err(RoleError(text.to_owned()));
    }
    let listening = listen.to_string();
    let own = name.or(advertise).unwrap_or(&listening);
    let mut names = BTreeSet::from([own]);
    let one = |replica| match str::split_once(replica, '=') {
        Some((name, address)) if names.insert(name) => Ok(Replica {
            name: name.to_owned(),
            address: address.to_owned(),
        }),
        Some((name, _)) => Err(RoleError(format!(
            "--replica {replica}: another replica is {name} already; this one is {own} (--name)"
        ))),
        None => Err(RoleError(format!(
            "--replica {replica}: write name=host:port"
        ))),
    };
    said.iter().map(String::as_str).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(replicas: &[&str], advertise: Option<&str>, name: Option<&str>) -> String {
        let replicas: Vec<String> = replicas.iter().map(|&r| r.to_owned()).collect();
        match others(
            &replicas,
            SocketAddr::from(([0, 0, 0, 0], 8002)),
            advertise,
            name,
        ) {
            Ok(found) => found
                .iter()
                .map(|r| format!("{}@{} ", r.name, r.address))
                .collect(),
            Err(RoleError(text)) => text,
        }
    }

    #[test]
    fn replicas_have_names_of_their_own_and_addresses_that_others_reach() {
        let here = Some("10.0.0.1:8002");
        assert_eq!(said(&[], None, None), "");
        assert_eq!(
            said(&["b=10.0.0.2:8002", "c=10.0.0.3:8002"], here, Some("a")),
            "b@10.0.0.2:8002 c@10.0.0.3:8002 "
        );
        assert!(said(&["b=10.0.0.2:8002"], None, Some("a")).contains("--advertise host:port"));
        assert!(
            said(&["a=10.0.0.2:8002"], here, Some("a")).contains("another replica is a already")
        );
        assert!(said(&["b=x:1", "b=y:1"], here, None).contains("--replica b=y:1: another"));
        assert!(said(&["10.0.0.2:8002"], here, None).contains("write name=host:port"));
    }
}
