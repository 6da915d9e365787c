//! The admin listener's writes: devices and streams, behind a bearer token.
//!
//! Reads come from `serve::admin_router`; here is what changes something, and the list of devices. The
//! subcommands do the same things by the same functions: nothing is decided here.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Request, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use link::{KeyPair, downlink::DownlinkStatus};
use model::{DeviceName, StreamName};
use program::clock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Store, StoreError};
use tokio::sync::watch;

use crate::{
    config::PublicAddress,
    device::{self, DeviceView},
    enroll,
    links::Links,
    stream::{self, Ended},
    table::UnknownName,
};

/// Longest request body: an invitation with [`enroll::MAX_RESERVED`] streams is a tenth of it.
const MAX_BODY_BYTES: usize = 64 << 10;

/// What the routes need of the program.
pub(crate) struct Admin {
    pub(crate) store: Store,
    pub(crate) key: KeyPair,
    /// As it stands in `admin.token`.
    pub(crate) token: String,
    /// Where devices find this hub, as far as settings tell.
    pub(crate) address: Option<PublicAddress>,
    pub(crate) link: watch::Receiver<DownlinkStatus>,
    pub(crate) links: Links,
}

/// The routes: `GET /api/v1/devices` and `…/{device}/link` for all, the writes for whoever holds the token.
pub(crate) fn router(admin: Arc<Admin>) -> Router {
    let writes = Router::new()
        .route("/api/v1/devices", post(invite))
        .route(
            "/api/v1/devices/{device}",
            patch(change_device).delete(remove_device),
        )
        .route(
            "/api/v1/streams/{stream}",
            patch(move_stream).delete(remove_stream),
        )
        .route("/api/v1/streams/{stream}/end", post(end_stream))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route_layer(middleware::from_fn_with_state(admin.clone(), holds_token));
    Router::new()
        .route("/api/v1/devices", get(list_devices))
        .route("/api/v1/devices/{device}/link", get(device_link))
        .merge(writes)
        .with_state(admin)
}

/// Lets a request through that carries the token.
async fn holds_token(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    if carries(request.headers(), &admin.token) {
        return next.run(request).await;
    }
    let reason = "this needs `Authorization: Bearer TOKEN` with the token in DATA_DIR/admin.token";
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, reason);
    ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}

fn carries(headers: &HeaderMap, token: &str) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else {
        return false;
    };
    // Hashes compare in constant time and tell nothing of a near miss.
    scheme.eq_ignore_ascii_case("bearer")
        && blake3::hash(given.trim().as_bytes()) == blake3::hash(token.as_bytes())
}

/// A device with the session it has now, if any.
#[derive(Serialize)]
struct Device {
    #[serde(flatten)]
    view: DeviceView,
    session: Option<Value>,
}

async fn list_devices(State(admin): State<Arc<Admin>>) -> Answer {
    let link = admin.link.borrow().clone();
    let views = blocking(move || Ok(device::views(&admin.store)?)).await?;
    let devices: Vec<Device> = views
        .into_iter()
        .map(|view| with_session(view, &link))
        .collect();
    ok(&devices)
}

fn with_session(view: DeviceView, link: &DownlinkStatus) -> Device {
    let session = link
        .sessions
        .iter()
        .find(|s| s.device == view.name)
        .map(session_json);
    Device { view, session }
}

/// `GET /api/v1/devices/{device}/link`: how the device's link stands, and its last hour.
///
/// `connected`; `now` (null while it is not connected) and `samples`, oldest first, one each `interval_ms` while it
/// was connected; `streams`, those that it ships in this session. What is `null` was not known or did not apply.
/// Delays are in milliseconds, `*_ms` otherwise Unix milliseconds, `loss` and shares from 0 to 1. `rate_bps`,
/// `delivery_bps`, `loss`, `rtt_ms`, `queueing_delay_ms`, `datagram_bytes`, `sent_bps`, `media_bps`, `parity_ratio`,
/// `resent_ratio`, `overhead` and `shares` are what the device says; `live_lag_ms`, `backlog` and `recovered` are known here.
async fn device_link(State(admin): State<Arc<Admin>>, Path(device): Path<String>) -> Answer {
    let name: DeviceName = parse(&device)?;
    let (store, wanted) = (admin.store.clone(), name.clone());
    blocking(move || {
        let found = store.devices()?.iter().any(|device| device.name == wanted);
        device::known(&store, &wanted, found)
    })
    .await?;
    let link = admin.link.borrow().clone();
    let session = link.sessions.iter().find(|s| s.device == name);
    ok(&admin.links.view(name, session))
}

/// A session as `/api/v1/status` and `/api/v1/devices` show it.
pub(crate) fn session_json(session: &link::downlink::SessionStatus) -> Value {
    json!({
        "device": session.device,
        "peer": session.peer.to_string(),
        "since_ms": session.since,
        "rtt_ms": session.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0),
        "loss": session.loss,
        "bytes_received": session.bytes_received,
        "clock_ahead_ms": session.clock_ahead_ms,
    })
}

/// `POST /api/v1/devices`: what `hub enroll` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invite {
    name: DeviceName,
    #[serde(default)]
    streams: Vec<StreamName>,
    address: Option<PublicAddress>,
    #[serde(default, with = "humantime_serde")]
    expires: Option<Duration>,
}

async fn invite(
    State(admin): State<Arc<Admin>>,
    body: Result<Json<Invite>, JsonRejection>,
) -> Answer {
    let Json(invite) = body?;
    let Some(address) = invite.address.or_else(|| admin.address.clone()) else {
        return Err(Refusal::bad(
            "where will the device find this hub? Give \"address\", or set link.public_address",
        ));
    };
    let expires = invite.expires.unwrap_or(enroll::DEFAULT_EXPIRES);
    let now = clock::wall_now();
    let name = invite.name.clone();
    let made = blocking(move || {
        enroll::invite(
            &admin.store,
            &admin.key,
            &invite.name,
            &address,
            &invite.streams,
            expires,
            now,
        )
    })
    .await?;
    tracing::info!(device = %name, expires = %made.expires, "invited a device");
    ok(&json!({ "name": name, "url": made.url.to_string(), "expires_ms": made.expires }))
}

/// `PATCH /api/v1/devices/NAME`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceChange {
    enabled: bool,
}

async fn change_device(
    State(admin): State<Arc<Admin>>,
    Path(device): Path<String>,
    body: Result<Json<DeviceChange>, JsonRejection>,
) -> Answer {
    let (name, Json(change)) = (parse::<DeviceName>(&device)?, body?);
    let shown = name.clone();
    blocking(move || {
        device::known(
            &admin.store,
            &name,
            admin.store.set_device_enabled(&name, change.enabled)?,
        )
    })
    .await?;
    tracing::info!(device = %shown, enabled = change.enabled, "changed a device");
    ok(&json!({ "name": shown, "enabled": change.enabled }))
}

async fn remove_device(State(admin): State<Arc<Admin>>, Path(device): Path<String>) -> Answer {
    let name: DeviceName = parse(&device)?;
    let shown = name.clone();
    blocking(move || device::known(&admin.store, &name, admin.store.remove_device(&name)?)).await?;
    tracing::info!(device = %shown, "removed a device");
    ok(&json!({ "name": shown, "removed": true }))
}

/// `PATCH /api/v1/streams/NAME`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamChange {
    device: DeviceName,
}

async fn move_stream(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
    body: Result<Json<StreamChange>, JsonRejection>,
) -> Answer {
    let (name, Json(change)) = (parse::<StreamName>(&stream)?, body?);
    let (shown, to) = (name.clone(), change.device.clone());
    blocking(move || stream::give(&admin.store, &name, &change.device)).await?;
    tracing::info!(stream = %shown, device = %to, "moved a stream");
    ok(&json!({ "name": shown, "device": to }))
}

async fn end_stream(State(admin): State<Arc<Admin>>, Path(stream): Path<String>) -> Answer {
    let name: StreamName = parse(&stream)?;
    let shown = name.clone();
    let ended = blocking(move || stream::end(&admin.store, &name)).await?;
    if ended == Ended::Now {
        tracing::info!(stream = %shown, "ended a stream");
    }
    ok(&json!({ "name": shown, "ended": true }))
}

async fn remove_stream(State(admin): State<Arc<Admin>>, Path(stream): Path<String>) -> Answer {
    let name: StreamName = parse(&stream)?;
    let shown = name.clone();
    blocking(move || stream::remove(&admin.store, &name)).await?;
    tracing::info!(stream = %shown, "removed a stream and its segments");
    ok(&json!({ "name": shown, "removed": true }))
}

/// What a route answers.
type Answer = Result<Response, Refusal>;

/// A status and a sentence, in the JSON that all refusals have: `error`, a word; `reason`, the sentence.
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl ToString) -> Self {
        Self {
            status,
            reason: reason.to_string(),
        }
    }

    fn bad(reason: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// The word for programs.
    fn error(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::CONFLICT => "conflict",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::INTERNAL_SERVER_ERROR => "internal",
            _ => "bad_request",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error(), "reason": self.reason });
        (self.status, Json(body)).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// What the catalog or a subcommand's function refused: who is at fault decides the status.
impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        let status = match error.downcast_ref::<StoreError>() {
            _ if error.is::<UnknownName>() => StatusCode::NOT_FOUND,
            Some(StoreError::OwnedByOther { .. }) => StatusCode::CONFLICT,
            Some(error) => {
                tracing::error!(%error, "failed to carry out a request on the admin listener");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            None => StatusCode::BAD_REQUEST,
        };
        Self::new(status, format_args!("{error:#}"))
    }
}

fn ok(body: &impl Serialize) -> Answer {
    Ok(Json(body).into_response())
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str) -> Result<T, Refusal> {
    name.parse().map_err(Refusal::bad)
}

/// Runs the catalog's blocking work off the tasks that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_with_its_scheme_counts() {
        for (header, good) in [
            (Some("Bearer secret"), true),
            (Some("bearer  secret "), true),
            (Some("Bearer secre"), false),
            (Some("Bearer secrets"), false),
            (Some("Bearer "), false),
            (Some("Bearer"), false),
            (Some("Basic secret"), false),
            (Some("secret"), false),
            (Some(""), false),
            (None, false),
        ] {
            let headers: HeaderMap = header
                .map(|value| (header::AUTHORIZATION, value.parse().unwrap()))
                .into_iter()
                .collect();
            assert_eq!(carries(&headers, "secret"), good, "{header:?}");
        }
    }
}
