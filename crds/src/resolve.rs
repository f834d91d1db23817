//! Objects in, policy out: the same function for the operator and for light mode.
//!
//! Invariants: pure and deterministic; all mistakes are reported, not only the first; a revision
//! grows only when content changes; what resolves also encodes and decodes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::distribution::{Distribution, Media, Permission, Storage};
use crate::field::{Invalid, Reason, quoted};
use crate::policy::{HttpPolicy, NodePolicy, Policy, SchedulerPolicy, StoragePolicy};
use crate::profile::{MEMORY_SHARE, Preset};
use crate::scheduler_pool::{SchedulerPool, SchedulerPoolSpec};
use crate::sources::HttpSource;
use crate::{duration, quantity};

/// Smallest quota: a node must hold some pieces of what it relays.
const MIN_QUOTA: u64 = 64 << 20;
/// Lowest rate: slower would let requests time out rather than slow them down.
const MIN_RATE: u64 = 64 << 10;

/// Resolves a Distribution and the pool it refers to. `previous` is the policy in force, which gives
/// the next revision; `None` for the first.
///
/// # Errors
/// Every mistake in either object.
pub fn resolve(
    distribution: &Distribution,
    pool: Option<&SchedulerPool>,
    previous: Option<&Policy>,
) -> Result<Policy, Vec<Invalid>> {
    let mut mesh = Check::of("Distribution", &distribution.metadata);
    let spec = &distribution.spec;
    let preset = spec.profile.preset();

    let seeds = spec.seeds.replicas.unwrap_or(preset.seeds);
    let seeds = mesh.integer("spec.seeds.replicas", seeds, 1, 64);
    let emitters = mesh.integer("spec.seeds.emitters", spec.seeds.emitters, 1, 16);
    if emitters > seeds {
        let message = format!("{emitters}: must be no more than spec.seeds.replicas ({seeds})");
        mesh.fail("spec.seeds.emitters", Reason::InvalidValue, message);
    }
    let node = NodePolicy {
        transport: spec.security.transport,
        upload_bytes_per_second: mesh.rate("spec.limits.upload", spec.limits.upload.as_deref()),
        download_bytes_per_second: mesh
            .rate("spec.limits.download", spec.limits.download.as_deref()),
        back_to_source: spec.back_to_source == Permission::Allowed,
        objective: spec.objective,
        storage: storage(&mut mesh, &spec.storage, &preset),
        revoked: spec.security.revoked_nodes.clone(),
    };
    let source_http = http(&mut mesh, &spec.sources.http, &preset);
    let taken = [spec.peers.port, spec.peers.admin_port];
    let mirror = spec.mirror.as_ref();
    let mirror = mirror.map(|mirror| crate::mirror::resolve(&mut mesh, mirror, taken));

    if let Some(reference) = &spec.scheduler_pool_ref {
        let found = pool.and_then(|pool| pool.metadata.name.as_deref());
        if found != Some(reference.name.as_str()) {
            let namespace = distribution
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default();
            let message = format!(
                "{}: no such SchedulerPool in namespace {namespace}",
                quoted(&reference.name)
            );
            mesh.fail("spec.schedulerPoolRef.name", Reason::NotFound, message);
        }
    }
    let default_spec = SchedulerPoolSpec::default();
    let (mut pool_check, pool_spec) = match pool {
        Some(pool) => (Check::of("SchedulerPool", &pool.metadata), &pool.spec),
        None => (
            Check::of("SchedulerPool", &distribution.metadata),
            &default_spec,
        ),
    };
    let strategy = &pool_spec.strategy;
    let scheduler = SchedulerPolicy {
        replicas: pool_check.integer("spec.replicas", pool_spec.replicas, 1, 64),
        strategy: strategy.type_,
        degree: pool_check.integer("spec.strategy.degree", strategy.degree, 2, 64),
        candidates: pool_check.integer("spec.strategy.candidates", strategy.candidates, 1, 64),
        gateways: pool_check.integer("spec.gateways", pool_spec.gateways, 1, 16),
        seeds,
        emitters,
    };

    let uid = distribution.metadata.uid.clone().unwrap_or_default();
    if uid.is_empty() {
        mesh.fail(
            "metadata.uid",
            Reason::Required,
            "an object without identity".to_owned(),
        );
    }
    let mut policy = Policy {
        uid,
        node,
        source_http,
        mirror,
        scheduler,
        ..Policy::default()
    };
    let sealed = policy.seal().and_then(|()| {
        let before = previous.filter(|before| before.uid == policy.uid);
        policy.revision = match before {
            Some(before) if before.hash == policy.hash => before.revision,
            Some(before) => before.revision.saturating_add(1),
            None => 1,
        };
        policy.encode()
    });
    if let Err(error) = sealed {
        mesh.fail("spec", Reason::TooLong, error.to_string());
    }

    mesh.errors.append(&mut pool_check.errors);
    if mesh.errors.is_empty() {
        Ok(policy)
    } else {
        Err(mesh.errors)
    }
}

fn storage(check: &mut Check, spec: &Storage, preset: &Preset) -> StoragePolicy {
    let quota = match spec.quota.as_deref() {
        Some(text) => check.bytes("spec.storage.quota", text),
        None => {
            let quota = check.bytes("spec.storage.quota", preset.quota);
            if spec.media == Media::Memory {
                quota / MEMORY_SHARE
            } else {
                quota
            }
        }
    };
    if quota < MIN_QUOTA
        && check
            .errors
            .iter()
            .all(|error| error.field != "spec.storage.quota")
    {
        let shown = quoted(spec.quota.as_deref().unwrap_or_default());
        check.fail(
            "spec.storage.quota",
            Reason::InvalidValue,
            format!("{shown}: must be at least 64Mi"),
        );
    }
    let high = check.integer(
        "spec.storage.highWatermarkPercent",
        spec.high_watermark_percent,
        1,
        100,
    );
    let low = check.integer(
        "spec.storage.lowWatermarkPercent",
        spec.low_watermark_percent,
        0,
        99,
    );
    if low >= high {
        let message = format!("{low}: must be less than highWatermarkPercent ({high})");
        check.fail(
            "spec.storage.lowWatermarkPercent",
            Reason::InvalidValue,
            message,
        );
    }
    let reserve = spec
        .reserve_free_percent
        .unwrap_or(preset.reserve_free_percent);
    let max_age = spec.max_age.as_deref().unwrap_or(preset.max_age);
    let max_age_ms = check.millis("spec.storage.maxAge", max_age, 0, u64::MAX);
    if (1..60_000).contains(&max_age_ms) {
        let message = format!("{}: must be 0s (never) or at least 1m", quoted(max_age));
        check.fail("spec.storage.maxAge", Reason::InvalidValue, message);
    }
    StoragePolicy {
        media: spec.media,
        quota_bytes: quota,
        high_watermark_percent: high as u8,
        low_watermark_percent: low as u8,
        max_age_ms,
        reserve_free_percent: check.integer("spec.storage.reserveFreePercent", reserve, 0, 90)
            as u8,
    }
}

fn http(check: &mut Check, spec: &HttpSource, preset: &Preset) -> HttpPolicy {
    const BASE: &str = "spec.sources.http";
    let at = |field: &str| format!("{BASE}.{field}");
    if let Some(bundle) = &spec.ca_bundle
        && !is_pem(bundle)
    {
        let message = "must be one or more PEM blocks of type CERTIFICATE".to_owned();
        check.fail(&at("caBundle"), Reason::InvalidValue, message);
    }
    if let Some(proxy) = &spec.proxy
        && (!(proxy.starts_with("http://") || proxy.starts_with("https://")) || proxy.contains('@'))
    {
        // Not shown: it may hold a password.
        let message = "must be http://host:port without user and password".to_owned();
        check.fail(&at("proxy"), Reason::InvalidValue, message);
    } else if let Some(proxy) = spec.proxy.as_deref().filter(|proxy| !has_sound_port(proxy)) {
        let message = format!("{}: must have a port from 1 to 65535", quoted(proxy));
        check.fail(&at("proxy"), Reason::InvalidValue, message);
    }
    if !spec.no_proxy.is_empty() && spec.proxy.is_none() {
        check.fail(
            &at("noProxy"),
            Reason::InvalidValue,
            "has no effect without proxy".to_owned(),
        );
    }
    for (index, host) in spec.allowed_hosts.iter().enumerate() {
        if !has_sound_port(host) {
            let message = format!("{}: must have a port from 1 to 65535", quoted(host));
            check.fail(
                &at(&format!("allowedHosts[{index}]")),
                Reason::InvalidValue,
                message,
            );
        }
    }
    let requests = spec
        .max_concurrent_requests_per_origin
        .unwrap_or(preset.requests_per_origin);
    let ranges = spec.parallel_ranges.unwrap_or(preset.parallel_ranges);
    let loopback = spec.addresses.loopback.unwrap_or(preset.loopback);
    let rate = spec.max_bytes_per_second_per_origin.as_deref();
    HttpPolicy {
        freshness_ms: check.millis(&at("freshness"), &spec.freshness, 0, 86_400_000),
        query_include: spec.query.include.clone(),
        query_exclude: spec.query.exclude.clone(),
        allowed_hosts: spec.allowed_hosts.clone(),
        ca_bundle: spec.ca_bundle.clone(),
        proxy: spec.proxy.clone(),
        no_proxy: spec.no_proxy.clone(),
        allow_private: spec.addresses.private == Permission::Allowed,
        allow_loopback: loopback == Permission::Allowed,
        allow_link_local: spec.addresses.link_local == Permission::Allowed,
        max_requests_per_origin: check.integer(
            &at("maxConcurrentRequestsPerOrigin"),
            requests,
            1,
            1024,
        ),
        max_bytes_per_second_per_origin: check.rate(&at("maxBytesPerSecondPerOrigin"), rate),
        parallel_ranges: check.integer(&at("parallelRanges"), ranges, 1, 64),
        stall_timeout_ms: check.millis(&at("stallTimeout"), &spec.stall_timeout, 1_000, 3_600_000),
        connect_timeout_ms: check.millis(
            &at("connectTimeout"),
            &spec.connect_timeout,
            100,
            600_000,
        ),
    }
}

/// Whether a host or URL has no port or a possible one. The schema's pattern counts digits only.
pub(crate) fn has_sound_port(text: &str) -> bool {
    let authority = text
        .split_once("://")
        .map_or(text, |(_, rest)| rest)
        .trim_end_matches('/');
    match authority.rsplit_once(':') {
        // A colon inside of brackets belongs to an address.
        Some((_, port)) if !port.contains(']') => matches!(port.parse::<u16>(), Ok(1..)),
        _ => true,
    }
}

/// Whether the text holds nothing but certificates; whether they are sound is found by TLS.
fn is_pem(text: &str) -> bool {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut open = false;
    let mut body = 0;
    let mut blocks = 0;
    for line in text.lines().map(str::trim_end) {
        match (open, line) {
            (false, BEGIN) => (open, body) = (true, 0),
            (true, END) if body > 0 => (open, blocks) = (false, blocks + 1),
            // Text between blocks is a usual comment, but not the mark of another type: a private
            // key here would go to every node.
            (false, other) if !other.starts_with("-----") => {}
            (true, base64)
                if base64
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)) =>
            {
                body += base64.len();
            }
            _ => return false,
        }
    }
    !open && blocks > 0
}

/// Collects the mistakes of one object.
pub(crate) struct Check {
    object: String,
    errors: Vec<Invalid>,
}

impl Check {
    fn of(kind: &str, metadata: &ObjectMeta) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        Self {
            object: format!("{kind} {namespace}/{name}"),
            errors: Vec::new(),
        }
    }

    pub(crate) fn fail(&mut self, field: &str, reason: Reason, message: String) {
        let object = self.object.clone();
        self.errors.push(Invalid {
            object,
            field: field.to_owned(),
            reason,
            message,
        });
    }

    /// The schema says the same; an object of an older schema may say something else.
    pub(crate) fn integer(&mut self, field: &str, value: i32, min: i32, max: i32) -> u32 {
        if !(min..=max).contains(&value) {
            let message = format!("{value}: must be from {min} to {max}");
            self.fail(field, Reason::InvalidValue, message);
        }
        value.clamp(min, max).unsigned_abs()
    }

    fn bytes(&mut self, field: &str, text: &str) -> u64 {
        quantity::parse(text).unwrap_or_else(|error| {
            self.fail(
                field,
                Reason::InvalidValue,
                format!("{}: {error}", quoted(text)),
            );
            0
        })
    }

    fn rate(&mut self, field: &str, text: Option<&str>) -> u64 {
        let Some(text) = text else { return 0 };
        let bytes = self.bytes(field, text);
        if (1..MIN_RATE).contains(&bytes) {
            let message = format!("{}: must be 0 (no limit) or at least 64Ki", quoted(text));
            self.fail(field, Reason::InvalidValue, message);
        }
        bytes
    }

    fn millis(&mut self, field: &str, text: &str, min: u64, max: u64) -> u64 {
        let wrong = match duration::parse_ms(text) {
            Ok(ms) if (min..=max).contains(&ms) => return ms,
            Ok(_) => {
                let (min, max) = (duration::format_ms(min), duration::format_ms(max));
                format!("must be from {min} to {max}")
            }
            Err(error) => error.to_string(),
        };
        self.fail(
            field,
            Reason::InvalidValue,
            format!("{}: {wrong}", quoted(text)),
        );
        min
    }
}
