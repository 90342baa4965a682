//! What Google's client sends its requests through.
//!
//! Google's client brings the types of all requests and answers and how they are written. Its own transport reads answers
//! of any length, follows redirections, takes its TLS from the whole process and repeats by rules of its own; this one
//! does not.

use std::sync::Arc;
use std::time::Duration;

use google_cloud_compute_v1::model::{
    self, disks, images, instances, machine_types, regions, zone_operations as operations,
};
use google_cloud_compute_v1::{Result, stub};
use google_cloud_gax::options::RequestOptions;
use google_cloud_gax::response::Response;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::action::Action;
use crate::credentials::{CredentialSource, Credentials};
use crate::error::GcpError;
use crate::http::Http;
use crate::token::{Tokens, email};
use coalition_cloud::ErrorKind;

/// Where Google listens.
const GOOGLE: &str = "https://compute.googleapis.com";
/// Where Cloud Monitoring does.
const MONITORING: &str = "https://monitoring.googleapis.com";
/// The version of the API that Google's client is written for.
const API_VERSION: &str = "2026-09-01";
/// Times a repeatable call is made before its failure counts.
const TRIES: u32 = 3;

/// One account's way to Compute Engine.
pub(crate) struct Transport {
    pub(crate) http: Http,
    pub(crate) endpoint: Option<String>,
    pub(crate) credentials: CredentialSource,
    pub(crate) tokens: Tokens,
    /// Pause before a repetition; doubled each time.
    pub(crate) pause: Duration,
}

/// One request, before it has a token.
struct Ask {
    action: Action,
    method: Method,
    url: reqwest::Url,
    /// Wiped when dropped: user data may hold a key. What the HTTP client copies of it is not.
    body: Option<Zeroizing<String>>,
}

impl Transport {
    fn url(
        &self,
        action: Action,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> std::result::Result<reqwest::Url, GcpError> {
        let unaskable = |problem: String| GcpError::Unaskable { action, problem };
        let is_compute = action != Action::ListTimeSeries;
        let base = self.endpoint.as_deref().unwrap_or(if is_compute { GOOGLE } else { MONITORING });
        let mut url: reqwest::Url = base.parse().map_err(|_| unaskable("the endpoint is no URL".into()))?;
        // Names were checked where they were made; what would leave its segment of the path goes nowhere.
        if let Some(wrong) =
            path.iter().find(|part| part.is_empty() || part.contains(['/', '?', '#', '%']) || part.starts_with('.'))
        {
            return Err(unaskable(format!("{wrong:?} is no name")));
        }
        url.path_segments_mut().map_err(|()| unaskable("the endpoint has no path".into()))?.clear().extend(path);
        let mut pairs = url.query_pairs_mut();
        for (key, value) in query {
            value.as_ref().map(|value| pairs.append_pair(key, value));
        }
        pairs.append_pair("$alt", "json");
        if is_compute {
            pairs.append_pair("$apiVersion", API_VERSION);
        }
        drop(pairs);
        Ok(url)
    }

    async fn call<A: DeserializeOwned>(
        &self,
        (action, method): (Action, Method),
        path: &[&str],
        query: &[(&str, Option<String>)],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<A>> {
        let asked = async {
            let unaskable = |error: serde_json::Error| GcpError::Unaskable { action, problem: error.to_string() };
            let body = body.map(serde_json::to_string).transpose().map_err(unaskable)?.map(Zeroizing::new);
            let ask = Ask { action, method, url: self.url(action, path, query)?, body };
            self.again(&ask).await
        };
        let answer = asked.await.map_err(GcpError::wrapped)?;
        read(action, &answer).map(Response::from).map_err(GcpError::wrapped)
    }

    async fn get<A: DeserializeOwned>(
        &self,
        action: Action,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> Result<Response<A>> {
        self.call((action, Method::GET), path, query, None::<&()>).await
    }

    /// One look at what Google's client has no part of here.
    pub(crate) async fn look(
        &self,
        action: Action,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> std::result::Result<serde_json::Value, GcpError> {
        let ask = Ask { action, method: Method::GET, url: self.url(action, path, query)?, body: None };
        read(action, &self.again(&ask).await?)
    }

    /// Repeats where that changes nothing.
    async fn again(&self, ask: &Ask) -> std::result::Result<Vec<u8>, GcpError> {
        let (action, mut pause, mut may_have_acted) = (ask.action, self.pause, false);
        for tries_left in (0..TRIES).rev() {
            let error = match self.once(ask).await {
                Err(error) => error,
                done => return done,
            };
            if may_have_acted && error.kind() == ErrorKind::NotFound {
                return Err(GcpError::Gone { action });
            }
            let may_help = matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Transient);
            if tries_left == 0 || !may_help || !action.is_repeatable() {
                return Err(error);
            }
            may_have_acted |= error.may_have_acted();
            tokio::time::sleep(error.retry_after().unwrap_or(pause)).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// One attempt; a second one with a new token where Google does not know the token any more.
    async fn once(&self, ask: &Ask) -> std::result::Result<Vec<u8>, GcpError> {
        let credentials = self.credentials(ask.action)?;
        match self.send(ask, &credentials).await {
            Err(error) if error.status() == Some(401) => {
                self.tokens.forget().await;
                self.send(ask, &credentials).await
            }
            done => done,
        }
    }

    async fn send(&self, ask: &Ask, credentials: &Credentials) -> std::result::Result<Vec<u8>, GcpError> {
        let action = ask.action;
        let no_token = |source: GcpError| match source {
            GcpError::Credentials { source, .. } => GcpError::Credentials { action, source },
            source => GcpError::Token { action, source: Box::new(source) },
        };
        let token = self.tokens.token(&self.http, credentials).await.map_err(no_token)?;
        let unaskable = || GcpError::Unaskable { action, problem: "the token is none".into() };
        let mut request = reqwest::Request::new(ask.method.clone(), ask.url.clone());
        request.headers_mut().insert(AUTHORIZATION, token.header().ok_or_else(unaskable)?);
        if let Some(body) = &ask.body {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.to_string().into());
        }
        self.http.once(action, request).await.map(|answer| answer.body)
    }

    fn credentials(&self, action: Action) -> std::result::Result<Credentials, GcpError> {
        (self.credentials)().map_err(|source| GcpError::Credentials { action, source })
    }

    /// Who the credentials belong to, as they say themselves.
    pub(crate) async fn email(&self) -> std::result::Result<String, GcpError> {
        email(&self.http, &self.credentials(Action::GetToken)?).await
    }
}

/// An answer of Google's type. The type takes any object, so what an answer must have is looked for by who uses it.
pub(crate) fn read<A: DeserializeOwned>(action: Action, body: &[u8]) -> std::result::Result<A, GcpError> {
    serde_json::from_slice(body).map_err(|error| {
        let problem = coalition_cloud::one_line(&error.to_string(), 200);
        GcpError::Garbled { action, problem }
    })
}

/// The one [`Transport`], in the shape each part of Google's client takes.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Arc<Transport>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({})", self.0.endpoint.as_deref().unwrap_or(GOOGLE))
    }
}

/// `compute/v1/projects/P/` and the rest.
macro_rules! path {
    ($project:expr, $($rest:expr),+) => { &["compute", "v1", "projects", &$project, $($rest),+] };
}

fn text(number: Option<impl ToString>) -> Option<String> {
    number.map(|number| number.to_string())
}

impl stub::Instances for Shared {
    async fn insert(&self, asked: instances::InsertRequest, _: RequestOptions) -> Result<Response<model::Operation>> {
        let to = (Action::InsertInstance, Method::POST);
        let query = [("requestId", asked.request_id)];
        self.0.call(to, path!(asked.project, "zones", &asked.zone, "instances"), &query, asked.body.as_ref()).await
    }

    async fn get(&self, asked: instances::GetRequest, _: RequestOptions) -> Result<Response<model::Instance>> {
        let path = path!(asked.project, "zones", &asked.zone, "instances", &asked.instance);
        self.0.get(Action::GetInstance, path, &[]).await
    }

    async fn aggregated_list(
        &self,
        asked: instances::AggregatedListRequest,
        _: RequestOptions,
    ) -> Result<Response<model::InstanceAggregatedList>> {
        let query =
            [("filter", asked.filter), ("maxResults", text(asked.max_results)), ("pageToken", asked.page_token)];
        self.0.get(Action::ListInstances, path!(asked.project, "aggregated", "instances"), &query).await
    }

    async fn delete(&self, asked: instances::DeleteRequest, _: RequestOptions) -> Result<Response<model::Operation>> {
        let path = path!(asked.project, "zones", &asked.zone, "instances", &asked.instance);
        self.0.call((Action::DeleteInstance, Method::DELETE), path, &[], None::<&()>).await
    }

    async fn get_serial_port_output(
        &self,
        asked: instances::GetSerialPortOutputRequest,
        _: RequestOptions,
    ) -> Result<Response<model::SerialPortOutput>> {
        let path = path!(asked.project, "zones", &asked.zone, "instances", &asked.instance, "serialPort");
        let query = [("port", text(asked.port)), ("start", text(asked.start))];
        self.0.get(Action::GetSerialPortOutput, path, &query).await
    }
}

impl stub::Disks for Shared {
    async fn aggregated_list(
        &self,
        asked: disks::AggregatedListRequest,
        _: RequestOptions,
    ) -> Result<Response<model::DiskAggregatedList>> {
        let query =
            [("filter", asked.filter), ("maxResults", text(asked.max_results)), ("pageToken", asked.page_token)];
        self.0.get(Action::ListDisks, path!(asked.project, "aggregated", "disks"), &query).await
    }

    async fn delete(&self, asked: disks::DeleteRequest, _: RequestOptions) -> Result<Response<model::Operation>> {
        let path = path!(asked.project, "zones", &asked.zone, "disks", &asked.disk);
        self.0.call((Action::DeleteDisk, Method::DELETE), path, &[], None::<&()>).await
    }
}

impl stub::Images for Shared {
    async fn get(&self, asked: images::GetRequest, _: RequestOptions) -> Result<Response<model::Image>> {
        self.0.get(Action::GetImage, path!(asked.project, "global", "images", &asked.image), &[]).await
    }

    async fn get_from_family(
        &self,
        asked: images::GetFromFamilyRequest,
        _: RequestOptions,
    ) -> Result<Response<model::Image>> {
        let path = path!(asked.project, "global", "images", "family", &asked.family);
        self.0.get(Action::GetImageFromFamily, path, &[]).await
    }
}

impl stub::MachineTypes for Shared {
    async fn get(&self, asked: machine_types::GetRequest, _: RequestOptions) -> Result<Response<model::MachineType>> {
        let path = path!(asked.project, "zones", &asked.zone, "machineTypes", &asked.machine_type);
        self.0.get(Action::GetMachineType, path, &[]).await
    }
}

impl stub::Regions for Shared {
    async fn get(&self, asked: regions::GetRequest, _: RequestOptions) -> Result<Response<model::Region>> {
        self.0.get(Action::GetRegion, path!(asked.project, "regions", &asked.region), &[]).await
    }
}

impl stub::ZoneOperations for Shared {
    async fn get(&self, asked: operations::GetRequest, _: RequestOptions) -> Result<Response<model::Operation>> {
        let path = path!(asked.project, "zones", &asked.zone, "operations", &asked.operation);
        self.0.get(Action::GetOperation, path, &[]).await
    }
}
