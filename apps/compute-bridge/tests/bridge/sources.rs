//! Images from memory, and everything that was logged.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coalition_content::Content;
use coalition_content::fetch::{Source, SourceError};
use coalition_content::service::FileService;
use coalition_content::tree::Outline;
use coalition_content::wire::Ask;
use compute_bridge::image::ImageSource;

/// An image served as a requester's node serves one.
pub(crate) struct MemorySource {
    pub(crate) file: FileService,
    /// Fails every call whose number divides by this, from 1.
    pub(crate) fail_every: u32,
    /// Has nothing from this byte on.
    pub(crate) ends: u64,
    /// Changes a byte of every slice.
    pub(crate) lies: bool,
    pub(crate) calls: Mutex<u32>,
    /// Evidence handed to the requester.
    pub(crate) delivered: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl MemorySource {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Self {
            file: FileService::new(Outline::read(bytes, bytes.len() as u64).unwrap(), file),
            fail_every: u32::MAX,
            ends: u64::MAX,
            lies: false,
            calls: Mutex::default(),
            delivered: Arc::default(),
        }
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn slice(&self, content: Content, range: Range<u64>, _deadline: Duration) -> Result<Vec<u8>, SourceError> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        if calls.is_multiple_of(self.fail_every) {
            return Err(SourceError::Later("scripted".into()));
        }
        if range.start >= self.ends {
            return Err(SourceError::Never("scripted end".into()));
        }
        let ask = Ask::Slice(content, range);
        let (mut slice, _) =
            self.file.answer(ask.method(), &ask.to_body()).map_err(|fault| match fault.code.as_str() {
                "other_size" => SourceError::OtherSize,
                code => SourceError::Never(code.to_owned()),
            })?;
        if self.lies {
            slice[7] ^= 1;
        }
        Ok(slice)
    }
}

#[async_trait]
impl ImageSource for MemorySource {
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
