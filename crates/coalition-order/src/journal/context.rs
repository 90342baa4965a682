//! The engine's context with another storage underneath.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use commonware_runtime::signal::Signal;
use commonware_runtime::telemetry::metrics::{Metric, Registered};
use commonware_runtime::{BlobVersion, Clock, Error, Handle, Metrics, Name, Spawner, Storage, Supervisor};
use governor::clock::{Clock as GovernorClock, ReasonablyRealtime};
use rand_core_10::{CryptoRng, TryCryptoRng, TryRng};

/// Takes everything from `E` except the storage, which is `S`.
pub(crate) struct WithStorage<E, S> {
    inner: E,
    storage: S,
}

impl<E, S> WithStorage<E, S> {
    pub(crate) fn new(inner: E, storage: S) -> Self {
        Self { inner, storage }
    }
}

impl<E: Supervisor, S: Clone + Send + Sync + 'static> Supervisor for WithStorage<E, S> {
    fn name(&self) -> Name {
        self.inner.name()
    }

    fn child(&self, label: &'static str) -> Self {
        Self { inner: self.inner.child(label), storage: self.storage.clone() }
    }

    fn with_attribute(self, key: &'static str, value: impl Display) -> Self {
        Self { inner: self.inner.with_attribute(key, value), storage: self.storage }
    }
}

impl<E: Spawner, S: Clone + Send + Sync + 'static> Spawner for WithStorage<E, S> {
    fn shared(self, blocking: bool) -> Self {
        Self { inner: self.inner.shared(blocking), storage: self.storage }
    }

    fn dedicated(self) -> Self {
        Self { inner: self.inner.dedicated(), storage: self.storage }
    }

    fn spawn<F, Fut, T>(self, f: F) -> Handle<T>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let storage = self.storage;
        self.inner.spawn(move |inner| f(Self { inner, storage }))
    }

    fn stop(self, value: i32, timeout: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        self.inner.stop(value, timeout)
    }

    fn stopped(&self) -> Signal {
        self.inner.stopped()
    }
}

impl<E: Metrics, S: Clone + Send + Sync + 'static> Metrics for WithStorage<E, S> {
    fn register<N: Into<String>, H: Into<String>, M: Metric>(&self, name: N, help: H, metric: M) -> Registered<M> {
        self.inner.register(name, help, metric)
    }

    fn encode(&self) -> String {
        self.inner.encode()
    }
}

impl<E: Clock, S: Send + Sync + 'static> GovernorClock for WithStorage<E, S> {
    type Instant = SystemTime;

    fn now(&self) -> SystemTime {
        self.inner.now()
    }
}

impl<E: Clock, S: Send + Sync + 'static> ReasonablyRealtime for WithStorage<E, S> {}

impl<E: Clock, S: Send + Sync + 'static> Clock for WithStorage<E, S> {
    fn current(&self) -> SystemTime {
        self.inner.current()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static + use<E, S> {
        self.inner.sleep(duration)
    }

    fn sleep_until(&self, deadline: SystemTime) -> impl Future<Output = ()> + Send + 'static + use<E, S> {
        self.inner.sleep_until(deadline)
    }
}

impl<E: CryptoRng, S> TryRng for WithStorage<E, S> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.inner.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.inner.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.inner.fill_bytes(bytes);
        Ok(())
    }
}

impl<E: CryptoRng, S> TryCryptoRng for WithStorage<E, S> {}

impl<E: Send + Sync + 'static, S: Storage> Storage for WithStorage<E, S> {
    type Blob = S::Blob;

    fn open_versioned(
        &self,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> impl Future<Output = Result<(S::Blob, u64, BlobVersion), Error>> + Send {
        self.storage.open_versioned(partition, name, versions)
    }

    fn remove(&self, partition: &str, name: Option<&[u8]>) -> impl Future<Output = Result<(), Error>> + Send {
        self.storage.remove(partition, name)
    }

    fn scan(&self, partition: &str) -> impl Future<Output = Result<Vec<Vec<u8>>, Error>> + Send {
        self.storage.scan(partition)
    }
}
