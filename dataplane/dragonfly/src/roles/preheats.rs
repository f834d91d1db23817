//! Plans of Preheats as this scheduler carries them out: from the objects' words to the scheduler's and
//! back.

use std::time::Duration;

use dragonfly_crds::preheat::{
    FileProgress, NodeFailure, Plan, Progress, Role, State, Targeted, WhenType,
};
use dragonfly_kubernetes::preheats::{Job, Warmer};
use dragonfly_proto::rpc;
use dragonfly_scheduler::preheats::{self, Amount};
use dragonfly_scheduler::service::Service;

/// A scheduler of this process.
pub(crate) struct ThisScheduler {
    pub(crate) service: Service,
    /// Which registries the mesh mirrors, by the policy in force.
    pub(crate) mirrored: Box<dyn Fn() -> dragonfly_mirror::Settings + Send + Sync>,
}

impl Warmer for ThisScheduler {
    fn begin(&self, job: &Job<'_>) -> Result<(), String> {
        self.service.preheat(plan(job, &(self.mirrored)()))
    }

    fn progress(&self, job: &str, plan: &Plan) -> Option<Progress> {
        self.service
            .preheated(job)
            .map(|found| progress(found, plan))
    }

    fn end(&self, job: &str, stop: bool) {
        self.service.end_preheat(job, stop);
    }
}

fn unsigned(n: i32) -> usize {
    usize::try_from(n).unwrap_or_default()
}

fn plan(job: &Job<'_>, mirrored: &dragonfly_mirror::Settings) -> preheats::Plan {
    let p = job.plan;
    let sources = p.files.iter().map(|file| {
        let digest = file.digest.clone().unwrap_or_default();
        // What is an image's is fetched as what pulls ask for, and given out by mirrors alone.
        let images = mirrored.image_source(&file.url, &digest);
        images.unwrap_or_else(|| rpc::Source {
            url: file.url.clone(),
            digest,
            ..rpc::Source::default()
        })
    });
    preheats::Plan {
        job: job.name.to_owned(),
        key: job.uid.to_owned(),
        sources: sources.collect(),
        role: match p.targets.role {
            Role::Seeds => rpc::Role::Seed,
            Role::Peers => rpc::Role::Peer,
        },
        names: job.nodes.clone(),
        zones: p.targets.zones.clone(),
        amount: match (p.targets.count, p.targets.percent) {
            (Some(count), _) => Amount::Count(unsigned(count)),
            (None, Some(percent)) => Amount::Percent(unsigned(percent)),
            (None, None) => Amount::All,
        },
        parallelism: unsigned(p.parallelism),
        retries: u32::try_from(p.retries).unwrap_or_default(),
        backoff: Duration::from_millis(u64::try_from(p.backoff_milliseconds).unwrap_or_default()),
        ends_in: job.ends_in,
        continuous: p.when == WhenType::Continuous,
        expect: job.expect,
    }
}

fn progress(found: preheats::Progress, plan: &Plan) -> Progress {
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let holders = found.desired.saturating_sub(found.no_room) as u64;
    let files = found.contents.iter().zip(&plan.files);
    Progress {
        run: plan.run,
        state: match found.state {
            preheats::State::Running => State::Running,
            preheats::State::Succeeded => State::Succeeded,
            preheats::State::Failed => State::Failed,
            preheats::State::TimeUp => State::DeadlineExceeded,
        },
        targets: Targeted {
            desired: count(found.desired),
            active: count(found.active),
            succeeded: count(found.succeeded),
            failed: count(found.failed),
            skipped: count(found.no_room),
        },
        files: files
            .map(|(content, _)| FileProgress {
                length: content.length.map(bytes),
                bytes: bytes(content.held),
                total_bytes: bytes(content.length.unwrap_or_default().saturating_mul(holders)),
                nodes: count(content.nodes),
            })
            .collect(),
        failed_nodes: found
            .failures
            .into_iter()
            .map(|f| NodeFailure {
                node: f.node,
                message: f.message,
                attempts: i32::try_from(f.attempts).unwrap_or(i32::MAX),
            })
            .collect(),
        ..Progress::default()
    }
}
