//! Which blows fall, in which order, and what came of them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    life::{Blow, Place, live},
    trigger::Point,
    world::World,
};

/// One blow in so many falls at a random instant.
const RANDOM: usize = 6;
/// One blow in so many is followed by another.
const TWICE: usize = 3;
/// After so many kills everything is made anew: moto answers more slowly for every instance it has ever seen.
const ROUND: usize = 100;
/// Random instants lie within this after the request.
const LIFETIME_MS: u64 = 6_000;

pub struct Options {
    pub count: usize,
    pub seed: u64,
    /// Where everything is left to look at.
    pub keep: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { count: 100, seed: 1, keep: None }
    }
}

/// What came of it.
#[derive(Default)]
pub struct Summary {
    pub blows: usize,
    pub twice: usize,
    pub lives: usize,
    pub served: usize,
    pub given_back: usize,
    pub not_reached: usize,
    pub labels: BTreeSet<String>,
    pub points: usize,
    pub broken: Vec<String>,
    seconds: u64,
    seed: u64,
}

impl Summary {
    pub fn to_json(&self) -> Value {
        json!({
            "seed": self.seed, "lives": self.lives, "kills": self.blows, "lives_with_two_kills": self.twice,
            "points_known": self.points, "kinds_hit": self.labels.len(), "points_not_reached": self.not_reached,
            "served": self.served, "given_back": self.given_back, "leaked_or_lost": self.broken, "seconds": self.seconds,
        })
    }
}

/// Runs it; `None`, with a word, where something is missing.
pub async fn run(options: &Options, program: &Path) -> Option<Summary> {
    let temporary = tempfile::tempdir().unwrap();
    let kept = options.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut going = Going {
        rng: StdRng::seed_from_u64(options.seed),
        queue: Vec::new(),
        summary: Summary { seed: options.seed, ..Summary::default() },
        started: Instant::now(),
        stopped: stop_signal(),
    };
    for number in 1.. {
        let dir = kept.join(format!("round-{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        going.round(options, program, &dir).await?;
        if !going.wants(options.count, options.count) {
            break;
        }
        if options.keep.is_none() {
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
    going.summary.seconds = going.started.elapsed().as_secs();
    Some(going.summary)
}

/// What goes on from round to round.
struct Going {
    rng: StdRng,
    queue: Vec<(Place, Point)>,
    summary: Summary,
    started: Instant,
    stopped: Arc<AtomicBool>,
}

impl Going {
    /// Whether it goes on until there were so many kills, of `count` in all.
    fn wants(&self, kills: usize, count: usize) -> bool {
        let Summary { blows, lives, broken, .. } = &self.summary;
        *blows < kills && *lives < count * 2 && broken.is_empty() && !self.stopped.load(Ordering::SeqCst)
    }

    async fn round(&mut self, options: &Options, program: &Path, dir: &Path) -> Option<()> {
        let mut world = World::start(dir, program).await?;
        let points = self.undisturbed(&mut world).await;
        let end = (self.summary.blows + ROUND).min(options.count);
        while self.wants(end, options.count) {
            let (place, blow) = next(&mut self.rng, &mut self.queue, &points, self.summary.lives);
            let outcome = live(&mut world, place, &blow).await;
            account(&mut self.summary, &blow, outcome);
            if self.summary.lives.is_multiple_of(10) {
                let (kills, took) = (self.summary.blows, self.started.elapsed().as_secs());
                println!("{kills} of {} kills, {} starts in this round, {took} s", options.count, world.restarts() + 1);
            }
        }
        Some(())
    }

    /// A life of each kind in which nothing is killed: what happens in it are the points.
    async fn undisturbed(&mut self, world: &mut World) -> Vec<(Place, Point)> {
        assert!(world.ask(&["--json", "image", "example", "hello.tar"]).0, "the example image cannot be made");
        let mut points = Vec::new();
        for place in Place::ALL {
            match live(world, place, &Blow::None).await {
                Ok(told) => points.extend(told.points.into_iter().map(|point| (place, point))),
                Err(broken) => self.summary.broken.push(format!("undisturbed: {broken}")),
            }
        }
        self.summary.points = points.len();
        println!("{} points in an undisturbed life of both kinds", points.len());
        points
    }
}

/// Becomes true at SIGINT or SIGTERM: the life at hand is lived to its end, then there is a summary and nothing is left running.
fn stop_signal() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signal, stopped) = (signal(kind).expect("signals can be listened to"), Arc::clone(&stopped));
        tokio::spawn(async move {
            signal.recv().await;
            stopped.store(true, Ordering::SeqCst);
        });
    }
    stopped
}

/// All points in random order before any comes again; now and then a random instant.
fn next(rng: &mut StdRng, queue: &mut Vec<(Place, Point)>, points: &[(Place, Point)], life: usize) -> (Place, Blow) {
    if life % RANDOM == RANDOM - 1 || points.is_empty() {
        let place = Place::ALL[rng.random_range(0..2)];
        return (place, Blow::After(Duration::from_millis(rng.random_range(0..LIFETIME_MS))));
    }
    if queue.is_empty() {
        queue.extend_from_slice(points);
        queue.shuffle(rng);
    }
    let (place, point) = queue.pop().expect("it was filled");
    let again = life.is_multiple_of(TWICE).then(|| rng.random_range(1..25));
    (place, Blow::At(point, again))
}

fn account(summary: &mut Summary, blow: &Blow, outcome: Result<crate::life::Told, String>) {
    summary.lives += 1;
    let what = match blow {
        Blow::None => "nothing".to_owned(),
        Blow::At(point, again) => format!("{point}, then {again:?}"),
        Blow::After(delay) => format!("after {} ms", delay.as_millis()),
    };
    match outcome {
        Err(broken) => {
            println!("BROKEN ({what}): {broken}");
            summary.broken.push(format!("{what}: {broken}"));
        }
        Ok(told) => {
            summary.blows += told.blows;
            summary.twice += usize::from(told.blows > 1);
            if std::env::var_os("CRASH_POINTS_VERBOSE").is_some() {
                println!("{what}: {} kills, {}", told.blows, told.end);
            }
            summary.served += usize::from(told.served);
            summary.given_back += usize::from(!told.served);
            summary.not_reached += usize::from(told.blows == 0);
            if let (Blow::At(point, _), true) = (blow, told.blows > 0) {
                summary.labels.insert(point.label.clone());
            }
        }
    }
}
