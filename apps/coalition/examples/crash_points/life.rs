//! One grant from request to final log, with the bridge killed on the way, and what must be true afterwards.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    trigger::{Point, Trigger},
    world::World,
};

/// How long a machine is used before its grant is ended: some looks at it by the bridge.
const USE: Duration = Duration::from_millis(2_500);

/// Where a life is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Cloud,
    Rack,
}

impl Place {
    pub const ALL: [Self; 2] = [Self::Cloud, Self::Rack];

    const fn region(self) -> &'static str {
        match self {
            Self::Cloud => "crash-cloud",
            Self::Rack => "crash-rack",
        }
    }
}

/// What is done to the bridge.
#[derive(Clone, Debug)]
pub enum Blow {
    /// Nothing.
    None,
    /// Killed at a point, and perhaps a second time so many points after its new start.
    At(Point, Option<usize>),
    /// Killed this long after the request was sent.
    After(Duration),
}

/// How a life went.
#[derive(Debug)]
pub struct Told {
    /// Every point passed before the first blow, or all of them.
    pub points: Vec<Point>,
    /// Blows that fell.
    pub blows: usize,
    /// Whether a machine was handed over.
    pub served: bool,
    /// How the grant ended, as its log says.
    pub end: String,
}

/// Lives it.
///
/// # Errors
/// The promise that was broken.
pub async fn live(world: &mut World, place: Place, blow: &Blow) -> Result<Told, String> {
    let (target, again) = match blow {
        Blow::None | Blow::After(_) => (None, None),
        Blow::At(point, again) => (Some(point.clone()), *again),
    };
    world.trigger.arm(target);
    let mut second = again;
    let mut struck = |trigger: &Trigger| {
        if let Some(steps) = second.take() {
            trigger.arm_again(steps);
        }
    };
    if let Blow::After(delay) = *blow {
        let trigger = std::sync::Arc::clone(&world.trigger);
        std::thread::spawn(move || {
            std::thread::park_timeout(delay);
            trigger.strike();
        });
    }
    let request = [
        "--json",
        "request",
        "--image",
        "hello.tar",
        "--cpu",
        "250m",
        "--ram",
        "64MiB",
        "--for",
        "10m",
        "--max-rate",
        "0.1",
        "--region",
        place.region(),
        "--wait",
        "60s",
        "--provision-wait",
        "100s",
        "--anyway",
    ];
    let (served, said) = world.run(&request, &mut struck);
    let id = said.iter().find_map(|line| line["request"].as_str().or(line["grant"].as_str()).map(str::to_owned));
    let id = id.ok_or_else(|| format!("the request was never ordered: {said:?}"))?;
    if served {
        used(world, &id, &mut struck)?;
        let (ended, said) = world.run(&["--json", "end", &id, "--wait", "100s"], &mut struck);
        if !ended {
            return Err(format!("the grant {id} is not ended: {said:?}"));
        }
    }
    let end = world.settle("the grant's end in the log", |world| ended_how(world, &id))?;
    let until = Instant::now() + crate::world::PATIENCE;
    loop {
        world.keep_up();
        let left = world.left().await;
        if left.is_empty() {
            break;
        }
        if Instant::now() >= until {
            return Err(format!("leaked by {id}: {}", left.join(", ")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if end.contains("never logged") {
        return Err(format!("the grant {id} was forgotten: {end}"));
    }
    if served && !end.contains("requester") {
        return Err(format!("the grant {id} was served and ended by its requester; its log says {end:?}"));
    }
    Ok(Told { points: world.trigger.seen(), blows: world.trigger.fired(), served, end })
}

/// Uses the machine for a while; whatever happens to the bridge, it must stay the same one.
fn used(world: &mut World, id: &str, struck: &mut impl FnMut(&Trigger)) -> Result<(), String> {
    let inside = |world: &World, command: &str| {
        let output = world.command(&["ssh", id, "--", command]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (made, mark) = inside(world, "cat /proc/sys/kernel/random/uuid > /tmp/mark; cat /tmp/mark");
    if !made || mark.len() != 36 {
        return Err(format!("the machine of {id} cannot be logged in to: {mark:?}"));
    }
    extended(world, id, struck)?;
    let until = Instant::now() + USE;
    while Instant::now() < until {
        if world.keep_up() {
            struck(&world.trigger);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    match inside(world, "cat /tmp/mark") {
        (true, again) if again == mark => Ok(()),
        other => Err(format!("the healthy machine of {id} was ended or exchanged: {other:?}, marked {mark}")),
    }
}

/// Has the grant made longer, and checks that the log says what its requester was told. A host without systemd has no timer that could be
/// moved; the answer is no then, for a reason, and the grant stays as it was.
fn extended(world: &mut World, id: &str, struck: &mut impl FnMut(&Trigger)) -> Result<(), String> {
    let before = world.ask(&["--json", "log", id]).1["granted"]["valid_to_ms"].as_u64();
    let until = Instant::now() + Duration::from_secs(60);
    let (longer, said) = loop {
        let asked = world.run(&["--json", "extend", id, "--for", "5m", "--wait", "100s"], &mut *struck);
        // A bridge that was killed between receipt and market tells the market a little later that it serves.
        let too_early = asked.1.iter().any(|line| line["error"]["code"] == "not_serving");
        if !too_early || Instant::now() >= until {
            break asked;
        }
        if world.keep_up() {
            struck(&world.trigger);
        }
        std::thread::park_timeout(Duration::from_millis(200));
    };
    let (_, log) = world.ask(&["--json", "log", id]);
    let added = log["granted"]["valid_to_ms"].as_u64().zip(before).map(|(after, before)| after - before);
    let declined = log["granted"]["extensions"][0]["answer"]["declined"].as_str().map(str::to_owned);
    match (longer, added, declined.as_deref()) {
        (true, Some(300_000), None) | (false, Some(0), Some("cannot_extend")) => Ok(()),
        other => Err(format!("the extension of {id} went wrong: {other:?}, told {said:?}")),
    }
}

fn ended_how(world: &World, id: &str) -> Option<String> {
    let (_, log) = world.ask(&["--json", "log", id]);
    let stage = log["granted"]["stage"].as_str().or_else(|| log["stage"].as_str());
    match stage {
        Some(stage) if stage.starts_with("ended") => Some(stage.to_owned()),
        Some(_) => None,
        // It expired or was withdrawn before anybody had it.
        None if log["granted"] == Value::Null && log["request"] != Value::Null => Some("no grant".to_owned()),
        None => None,
    }
}
