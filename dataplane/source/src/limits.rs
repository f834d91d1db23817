//! What one origin (scheme, host, port) may be asked for at once, shared by all fetches of the
//! process: requests at a time, bytes a second, and a pause that the origin itself asked for.
//!
//! Invariant: a permit is held from before a request is sent until its body is dropped. A body that
//! nobody reads for now learns when somebody else waits for its place.

use crate::source::{Meter, Place};
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::Url;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Limits for each origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginLimits {
    /// Requests at a time, at least 1.
    pub requests: usize,
    /// Bytes a second of bodies; `None` for no limit.
    pub bytes_per_second: Option<u64>,
    /// Longest pause that `Retry-After` imposes on *all* requests to the origin. Short: the answer to one
    /// path may say nothing of the others, and whoever asks for that path could keep everybody waiting.
    /// The request that was put off waits for as long as it was told (see `RetryPolicy`).
    pub max_pause: Duration,
}

impl Default for OriginLimits {
    fn default() -> Self {
        Self {
            requests: 32,
            bytes_per_second: None,
            max_pause: Duration::from_secs(5),
        }
    }
}

/// How much of a second's bytes may pass at once.
const BURST: Duration = Duration::from_millis(100);
/// Origins remembered before idle ones are forgotten.
const REMEMBERED: usize = 256;

/// The state of all origins.
pub(crate) struct Origins {
    limits: OriginLimits,
    known: Mutex<HashMap<String, Arc<Origin>>>,
}

/// The state of one origin.
pub(crate) struct Origin {
    permits: Arc<Semaphore>,
    /// Requests that wait for a place.
    waiting: AtomicUsize,
    /// Told once by each of them.
    crowded: Notify,
    bucket: Option<Bucket>,
    paused_until: Mutex<Option<Instant>>,
    max_pause: Duration,
}

/// A token bucket in its time form: when the bytes taken so far are paid for.
struct Bucket {
    bytes_per_second: u64,
    paid: Mutex<Instant>,
}

impl Origins {
    pub(crate) fn new(limits: OriginLimits) -> Self {
        Self {
            limits,
            known: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn of(&self, url: &Url) -> Arc<Origin> {
        let key = key(url);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            // Only the map holds an idle one. A pause the origin asked for is remembered.
            known.retain(|_, origin| Arc::strong_count(origin) > 1 || origin.pause().is_some());
        }
        known
            .entry(key)
            .or_insert_with(|| {
                Arc::new(Origin {
                    permits: Arc::new(Semaphore::new(
                        self.limits.requests.clamp(1, Semaphore::MAX_PERMITS),
                    )),
                    waiting: AtomicUsize::new(0),
                    crowded: Notify::new(),
                    bucket: self.limits.bytes_per_second.map(|rate| Bucket {
                        bytes_per_second: rate.max(1),
                        paid: Mutex::new(Instant::now()),
                    }),
                    paused_until: Mutex::new(None),
                    max_pause: self.limits.max_pause,
                })
            })
            .clone()
    }
}

/// Scheme, host and port; the authority of RFC 6454's origin.
pub(crate) fn key(url: &Url) -> String {
    format!(
        "{}://{}:{}",
        url.scheme(),
        url.host_str().unwrap_or(""),
        url.port_or_known_default().unwrap_or(0)
    )
}

impl Origin {
    /// Waits for a place and for the end of a pause. `None` only if the semaphore were closed,
    /// which nothing does.
    pub(crate) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Some(until) = self.pause() {
                tokio::time::sleep_until(until).await;
            }
            let permit = self.place().await?;
            // The wait for the permit may have been long: somebody may have been told to go away.
            if self.pause().is_none() {
                return Some(permit);
            }
        }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _counted = Waiting::new(&self.waiting);
        self.crowded.notify_one();
        self.permits.clone().acquire_owned().await.ok()
    }

    /// The origin asked to be left alone.
    pub(crate) fn pause_for(&self, wish: Duration) {
        let until = Instant::now() + wish.min(self.max_pause);
        let mut paused = self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *paused = Some(paused.map_or(until, |held| held.max(until)));
    }

    fn pause(&self) -> Option<Instant> {
        let until = *self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    /// True when bodies have to be metered.
    pub(crate) fn is_metered(&self) -> bool {
        self.bucket.is_some()
    }
}

/// Counts one who waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place for Origin {
    fn wanted(&self) -> BoxFuture<'_, ()> {
        async {
            while self.waiting.load(Ordering::Relaxed) == 0 {
                self.crowded.notified().await;
            }
        }
        .boxed()
    }
}

impl Meter for Origin {
    fn take(&self, bytes: u64) -> Option<Instant> {
        let bucket = self.bucket.as_ref()?;
        let now = Instant::now();
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bucket.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = bucket.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*paid).max(now.checked_sub(BURST).unwrap_or(now));
        *paid = from.checked_add(cost).unwrap_or(from);
        (*paid > now).then_some(*paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origins = Origins::new(OriginLimits::default());
        let first = origins.of(&url("https://a.example/x"));
        for (other, same) in [
            ("https://a.example:443/y?z", true),
            ("https://a.example:444/x", false),
            ("http://a.example/x", false),
            ("https://b.example/x", false),
        ] {
            assert_eq!(
                Arc::ptr_eq(&first, &origins.of(&url(other))),
                same,
                "{other}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_together_keep_to_the_rate() {
        let limits = OriginLimits {
            bytes_per_second: Some(1000),
            ..OriginLimits::default()
        };
        let origin = Origins::new(limits).of(&url("http://a.example/"));
        let began = Instant::now();
        for _ in 0..50 {
            if let Some(until) = origin.take(100) {
                tokio::time::sleep_until(until).await;
            }
        }
        let took = began.elapsed().as_secs_f64();
        assert!(
            (4.8..5.1).contains(&took),
            "5000 bytes at 1000 a second took {took}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_limited_and_given_back() {
        let limits = OriginLimits {
            requests: 1,
            ..OriginLimits::default()
        };
        let origin = Origins::new(limits).of(&url("http://a.example/"));
        let held = origin.enter().await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(1), origin.enter()).await;
        assert!(waiting.is_err());
        drop(held);
        assert!(origin.enter().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_a_place_learns_that_it_is_wanted() {
        let limits = OriginLimits {
            requests: 1,
            ..OriginLimits::default()
        };
        let origin = Origins::new(limits).of(&url("http://a.example/"));
        let second = Duration::from_secs(1);
        let held = origin.enter().await.unwrap();
        assert!(tokio::time::timeout(second, origin.wanted()).await.is_err());
        // One that gives up wants nothing any more.
        assert!(tokio::time::timeout(second, origin.enter()).await.is_err());
        assert!(tokio::time::timeout(second, origin.wanted()).await.is_err());
        let yields = async {
            origin.wanted().await;
            drop(held);
        };
        let (permit, ()) = tokio::join!(origin.enter(), yields);
        assert!(permit.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody_up_to_the_cap() {
        let origin = Origins::new(OriginLimits::default()).of(&url("http://a.example/"));
        origin.pause_for(Duration::from_secs(3600));
        origin.pause_for(Duration::from_secs(1));
        let began = Instant::now();
        let _ = origin.enter().await;
        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[test]
    fn idle_origins_are_forgotten() {
        let origins = Origins::new(OriginLimits::default());
        for n in 0..REMEMBERED * 4 {
            let _ = origins.of(&url(&format!("http://h{n}.example/")));
        }
        assert!(origins.known.lock().unwrap().len() <= REMEMBERED);
    }
}
