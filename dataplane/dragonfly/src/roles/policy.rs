//! From the resolved policy to the settings of each part.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_crds::Policy;
use dragonfly_crds::policy::{HttpPolicy, MirrorPolicy, Objective, StoragePolicy};
use dragonfly_node::node::Settings;
use dragonfly_proto::rpc;
use dragonfly_scheduler::core::CoreSettings;
use dragonfly_source::http::{HttpOptions, HttpSource};
use dragonfly_source::{FetchOptions, Fetcher, QueryFilter};
use dragonfly_storage::Options;

use super::RoleError;

/// The policy that was in force when this part of the mesh last ran, as it kept it.
pub(crate) fn last_good(path: &Path) -> Option<Policy> {
    let bytes = std::fs::read(path).ok()?;
    match Policy::decode(&bytes) {
        Ok(policy) => Some(policy),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the kept policy cannot be read");
            None
        }
    }
}

pub(crate) fn settings(p: &Policy) -> Settings {
    Settings {
        upload_limit: p.node.upload_bytes_per_second,
        download_limit: p.node.download_bytes_per_second,
        back_to_source: p.node.back_to_source,
        freshness: Duration::from_millis(p.source_http.freshness_ms),
        slowest_first: p.node.objective == Objective::Slowest,
        revoked: p.node.revoked.clone(),
        query: QueryFilter {
            include: p.source_http.query_include.clone(),
            exclude: p.source_http.query_exclude.clone(),
            ..QueryFilter::default()
        },
    }
}

pub(crate) fn fetcher(p: &HttpPolicy) -> Result<Fetcher, RoleError> {
    let fetch = FetchOptions {
        parallel: p.parallel_ranges as usize,
        ..FetchOptions::default()
    };
    Ok(Fetcher::new(Arc::new(http(p)?), fetch))
}

/// How HTTP origins are reached.
pub(crate) fn http(p: &HttpPolicy) -> Result<HttpSource, RoleError> {
    let mut options = HttpOptions {
        ca_bundle: p.ca_bundle.clone(),
        proxy: p.proxy.clone().map(zeroize::Zeroizing::new),
        no_proxy: p.no_proxy.join(","),
        allowed_hosts: p.allowed_hosts.clone(),
        stall_timeout: Duration::from_millis(p.stall_timeout_ms),
        connect_timeout: Duration::from_millis(p.connect_timeout_ms),
        ..HttpOptions::default()
    };
    options.addresses.private = p.allow_private;
    options.addresses.loopback = p.allow_loopback;
    options.addresses.link_local = p.allow_link_local;
    options.limits.requests = p.max_requests_per_origin as usize;
    options.limits.bytes_per_second =
        Some(p.max_bytes_per_second_per_origin).filter(|limit| *limit > 0);
    HttpSource::new(options).map_err(|e| RoleError::at("spec.sources.http", e))
}

/// Which registries a mesh with this policy mirrors.
pub(crate) fn mirrored(policy: &Policy) -> dragonfly_mirror::Settings {
    let mirror = policy.mirror.as_ref();
    mirror
        .map(|said| self::mirror(policy, said))
        .unwrap_or_default()
}

/// What a peer does as a mirror of registries.
pub(crate) fn mirror(p: &Policy, mirror: &MirrorPolicy) -> dragonfly_mirror::Settings {
    let registries = mirror
        .registries
        .iter()
        .map(|r| dragonfly_mirror::Registry {
            host: r.host.clone(),
            url: r.url.clone(),
        });
    dragonfly_mirror::Settings {
        registries: registries.collect(),
        others: mirror.others,
        tags: if mirror.last_known_tags {
            dragonfly_mirror::Tags::LastKnown
        } else {
            dragonfly_mirror::Tags::Revalidate
        },
        direct: p.node.back_to_source,
        ..dragonfly_mirror::Settings::default()
    }
}

pub(crate) fn storage(p: &StoragePolicy) -> Options {
    Options {
        quota_bytes: p.quota_bytes,
        high_watermark_percent: p.high_watermark_percent,
        low_watermark_percent: p.low_watermark_percent,
        max_age: Some(p.max_age_ms)
            .filter(|age| *age > 0)
            .map(Duration::from_millis),
        reserve_free_percent: p.reserve_free_percent,
        ..Options::default()
    }
}

pub(crate) fn scheduler(p: &Policy) -> CoreSettings {
    let mut settings = CoreSettings::default();
    settings.swarm.degree = p.scheduler.degree as usize;
    settings.swarm.candidates = p.scheduler.candidates as usize;
    settings.swarm.gateways = p.scheduler.gateways;
    settings.swarm.emitters = p.scheduler.emitters;
    settings.swarm.peers_may_fetch = p.node.back_to_source;
    settings
}

/// A policy, and how it goes to nodes.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) policy: Policy,
    pub(crate) update: rpc::PolicyUpdate,
}

impl Given {
    /// One that was resolved here.
    pub(crate) fn resolved(policy: Policy) -> Result<Self, RoleError> {
        let json = policy.encode().map_err(|e| RoleError::at("policy", e))?;
        Ok(Self::received(policy, json))
    }

    /// One that came as these bytes: what this release does not know in it is for others.
    pub(crate) fn received(policy: Policy, json: Vec<u8>) -> Self {
        let update = rpc::PolicyUpdate {
            uid: policy.uid.clone(),
            revision: policy.revision,
            hash: policy.hash.clone(),
            json: json.into(),
        };
        Self { policy, update }
    }
}
