//! One call, and its answer within limits.

use std::sync::Arc;
use std::time::Duration;

use azure_core::Bytes;
use azure_core::error::{Error, ErrorKind as CoreKind};
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::auth::BearerTokenAuthorizationPolicy;
use azure_core::http::{
    ClientOptions, Context, Method, Pipeline, PipelineSendOptions, Request, RetryOptions,
    Transport as PipelineTransport,
};
use coalition_cloud::ErrorKind;
use reqwest::Url;
use zeroize::Zeroizing;

use crate::action::Action;
use crate::error::{AzureError, read_refusal};
use crate::image::ImageName;
use crate::login::{Login, NoToken};
use crate::memory::Memory;
use crate::operation::{MAX_WAIT, Operation, own_url, read_wait};
use crate::setup::{Places, Setup, SetupError};
use crate::transport::{Limit, Transport};

/// Times a repeatable call is made before its failure counts.
const TRIES: u32 = 3;
/// Longest answer of most calls, in bytes: a page of a few hundred machines.
const MAX_BYTES: usize = 8 << 20;
const ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
const LOCATION: HeaderName = HeaderName::from_static("location");
const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");

/// A client of one region of one subscription.
pub struct Azure {
    setup: Setup,
    image: ImageName,
    places: Places,
    pipeline: Pipeline,
    transport: Transport,
    login: Arc<Login>,
    memory: Memory,
}

/// One call.
pub(crate) struct Ask {
    pub(crate) action: Action,
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Wiped when dropped: user data may hold a key.
    pub(crate) body: Option<Bytes>,
    /// Refuses to touch what is there already.
    pub(crate) only_new: bool,
    /// Longest answer taken, in bytes.
    pub(crate) limit: usize,
}

/// What came back, of a status that says yes.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    pub(crate) operation: Option<Operation>,
    pub(crate) retry_after: Option<Duration>,
}

impl Ask {
    pub(crate) const fn get(action: Action, url: Url) -> Self {
        Self { action, method: Method::Get, url, body: None, only_new: false, limit: MAX_BYTES }
    }

    pub(crate) fn delete(action: Action, url: Url) -> Self {
        Self { method: Method::Delete, ..Self::get(action, url) }
    }

    pub(crate) fn with_body(action: Action, method: Method, url: Url, body: Zeroizing<Vec<u8>>) -> Self {
        Self { method, body: Some(Bytes::from_owner(body)), ..Self::get(action, url) }
    }
}

impl Azure {
    /// A client; nothing is contacted yet.
    ///
    /// # Errors
    /// [`SetupError`]: which value is wrong, and what is expected.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let (places, image) = setup.check()?;
        let transport = Transport::new(&setup, &places)?;
        let login = Arc::new(Login::new(Arc::clone(&setup.credentials), &places, &transport));
        let bearer = BearerTokenAuthorizationPolicy::new(Arc::clone(&login) as _, [places.scope.clone()]);
        let options = ClientOptions {
            // What is repeated, and when, is decided here.
            retry: RetryOptions::none(),
            transport: Some(PipelineTransport::with_policy(Arc::new(transport.clone()))),
            ..ClientOptions::default()
        };
        let (name, version) = (option_env!("CARGO_PKG_NAME"), option_env!("CARGO_PKG_VERSION"));
        let pipeline = Pipeline::new(name, version, options, Vec::new(), vec![Arc::new(bearer)], None);
        Ok(Self { setup, image, places, pipeline, transport, login, memory: Memory::default() })
    }

    pub(crate) const fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) const fn image_name(&self) -> &ImageName {
        &self.image
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) const fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) const fn is_loopback(&self) -> bool {
        self.places.is_loopback
    }

    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// A path of the subscription, with its query. What is put in was checked to be names.
    pub(crate) fn at(&self, path: &str) -> Url {
        self.at_subscription(&self.setup.subscription, path)
    }

    /// The same of any subscription: a gallery may be in another.
    pub(crate) fn at_subscription(&self, subscription: &str, path: &str) -> Url {
        let mut url = self.places.endpoint.clone();
        let path = format!("/subscriptions/{subscription}{path}");
        let (path, query) = path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        url
    }

    /// A path of the resource group.
    pub(crate) fn in_group(&self, path: &str) -> Url {
        self.at(&format!("/resourceGroups/{}{path}", self.setup.resource_group))
    }

    /// A URL an answer gave for the next page.
    pub(crate) fn next_page(&self, action: Action, text: &str) -> Result<Url, AzureError> {
        let problem = "its next page is not the Resource Manager's".to_owned();
        own_url(&self.places.endpoint, text).ok_or(AzureError::Garbled { action, problem })
    }

    /// One call, repeated where that changes nothing. A token that is not taken is replaced once: nothing was done with it.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Answer, AzureError> {
        let (mut pause, mut replaced) = (self.setup.pause, false);
        let mut left = TRIES;
        loop {
            left -= 1;
            let error = match self.once(ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.is_stale_token() && !replaced {
                (replaced, left) = (true, left + 1);
                self.login.forget().await;
                continue;
            }
            let is_passing = matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Transient);
            if left == 0 || !is_passing || !ask.action.is_repeatable() {
                return Err(error);
            }
            tokio::time::sleep(error.retry_after().unwrap_or_default().clamp(pause.min(MAX_WAIT), MAX_WAIT)).await;
            pause *= 2;
        }
    }

    async fn once(&self, ask: &Ask) -> Result<Answer, AzureError> {
        let mut request = Request::new(ask.url.clone(), ask.method);
        request.insert_header("accept", "application/json");
        if ask.only_new {
            request.insert_header("if-none-match", "*");
        }
        if let Some(body) = &ask.body {
            request.insert_header("content-type", "application/json");
            request.set_body(body.clone());
        }
        let mut context = Context::new();
        context.insert(Limit(ask.limit));
        let options = PipelineSendOptions { skip_checks: true, ..PipelineSendOptions::default() };
        let sent = self.pipeline.send(&context, &mut request, Some(options)).await;
        let (status, headers, body) = sent.map_err(|error| self.sorted(ask.action, error))?.deconstruct();
        let status = u16::from(status);
        let header = |name: &HeaderName| headers.get_optional_str(name);
        let retry_after = header(&RETRY_AFTER).and_then(read_wait);
        let body = Bytes::from(body);
        if !(200..300).contains(&status) {
            return Err(read_refusal(ask.action, status, &body, retry_after));
        }
        let (document, location) = (header(&ASYNC_OPERATION), header(&LOCATION));
        let operation = Operation::of(&self.places.endpoint, document, location, retry_after);
        Ok(Answer { status, body, operation, retry_after })
    }

    fn sorted(&self, action: Action, error: Error) -> AzureError {
        if let Some(NoToken { kind, problem }) = error.downcast_ref::<NoToken>() {
            return AzureError::NoToken { action, kind: *kind, problem: problem.clone() };
        }
        let host = self.places.endpoint.authority().to_owned();
        let kind = error.kind().clone();
        let problem = coalition_cloud::one_line(&error.to_string(), 200);
        let source = error.into_downcast::<reqwest::Error>().ok().map(Box::new);
        match kind {
            CoreKind::Connection => AzureError::Unreachable { action, host, source },
            CoreKind::Io => AzureError::Unanswered { action, host, source },
            _ => AzureError::Garbled { action, problem },
        }
    }
}

impl std::fmt::Debug for Azure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Setup { region, resource_group, .. } = &self.setup;
        write!(f, "Azure({region}, {resource_group}, {})", self.places.endpoint.authority())
    }
}
