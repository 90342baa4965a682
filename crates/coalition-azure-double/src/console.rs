//! Consoles: a signed URL that needs no token, and must not be shown one.

use serde_json::json;

use crate::answer::{Answer, Refusal};
use crate::server::Inner;
use crate::world::lock;

const SIGNATURE: &str = "sig=a-secret-for-as-long-as-it-counts";

pub(crate) fn place(inner: &Inner, name: &str) -> Result<Answer, Refusal> {
    let world = lock(&inner.world);
    let missing = || Refusal::new(404, "ResourceNotFound", format!("The Resource '{name}' was not found."));
    let machine = world.machines.get(name).ok_or_else(missing)?;
    if !machine.has_console {
        let words = "Boot diagnostics is not enabled on the virtual machine.";
        return Err(Refusal::new(409, "OperationNotAllowed", words));
    }
    let url = format!("{}/console/{name}?{SIGNATURE}", inner.endpoint);
    Ok(Answer::json(200, &json!({ "consoleScreenshotBlobUri": url, "serialConsoleLogBlobUri": url })))
}

pub(crate) fn read(inner: &Inner, name: &str, query: &str, has_token: bool) -> Answer {
    if has_token || query != SIGNATURE {
        return Answer::empty(403);
    }
    if !lock(&inner.world).machines.contains_key(name) {
        return Answer::empty(404);
    }
    // Longer than what is kept of it.
    let boot = "[    0.000000] Linux version 6.1.0\r\n".repeat(4_000);
    let text = format!("{boot}host {name} login: ");
    Answer { status: 200, headers: vec![("content-type", "text/plain".into())], body: text.into_bytes().into() }
}
