//! Images from memory, and everything that was logged.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use compute_bridge::image::{ChunkRequest, ChunkSource, MAX_CHUNK_BYTES};

/// An image in memory, in pieces of `piece` bytes.
pub(crate) struct MemorySource {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) piece: usize,
    /// Fails every call whose number divides by this, from 1.
    pub(crate) fail_every: u32,
    pub(crate) calls: Mutex<u32>,
    /// Evidence handed to the requester.
    pub(crate) delivered: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl MemorySource {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: Arc::new(bytes.to_vec()),
            piece: MAX_CHUNK_BYTES,
            fail_every: u32::MAX,
            calls: Mutex::default(),
            delivered: Arc::default(),
        }
    }
}

#[async_trait]
impl ChunkSource for MemorySource {
    async fn chunk(&self, request: ChunkRequest, _deadline: Duration) -> Result<Vec<u8>, String> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        if calls.is_multiple_of(self.fail_every) {
            return Err("scripted".into());
        }
        let from = usize::try_from(request.offset).unwrap().min(self.bytes.len());
        Ok(self.bytes[from..(from + self.piece).min(self.bytes.len())].to_vec())
    }

    async fn deliver(&self, evidence: Vec<u8>, _deadline: Duration) -> Result<(), String> {
        self.delivered.lock().unwrap().push(evidence);
        Ok(())
    }
}

/// Everything any bridge of this process has logged, at every level.
pub(crate) fn captured_log() -> Arc<Mutex<Vec<u8>>> {
    #[derive(Clone)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    static LOG: std::sync::OnceLock<Arc<Mutex<Vec<u8>>>> = std::sync::OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink(Arc::clone(&log));
        let filter = tracing_subscriber::EnvFilter::new("debug,compute_bridge=trace");
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || sink.clone()).init();
        log
    });
    Arc::clone(log)
}
