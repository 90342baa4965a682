//! What is printed, and where: data on stdout, progress and errors on stderr, JSON when asked for.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{error::CliError, values};

/// How long a spinner shows one frame.
const FRAME: Duration = Duration::from_millis(120);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// Width of the step names' column.
const NAME_WIDTH: usize = 13;
/// Width of the elapsed times' column.
const TIME_WIDTH: usize = 8;

/// Colours with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Done, accepted.
    Good,
    /// Less than one might think.
    Warn,
    /// Failed, or a thing not to be trusted.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Bold,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }
}

/// Where answers go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Output {
    json: bool,
    color_out: bool,
    color_err: bool,
    live: bool,
    sink: Sink,
}

#[derive(Debug, Clone)]
enum Sink {
    Process,
    Memory(Arc<Mutex<Captured>>),
}

/// What an [`Output::captured`] collected.
#[derive(Debug, Default, Clone)]
pub struct Captured {
    /// Lines for stdout.
    pub out: String,
    /// Lines for stderr.
    pub err: String,
}

impl Output {
    /// The process's own streams. Colour and live progress only on terminals, and not when `NO_COLOR` is set or `TERM` is
    /// `dumb`.
    #[must_use]
    pub fn process(json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value: std::ffi::OsString| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let plain = json || set("NO_COLOR") || dumb;
        Self {
            json,
            color_out: !plain && io::stdout().is_terminal(),
            color_err: !plain && io::stderr().is_terminal(),
            live: !json && !dumb && io::stderr().is_terminal(),
            sink: Sink::Process,
        }
    }

    /// Collects everything in memory, plain.
    #[must_use]
    pub fn captured(json: bool) -> (Self, Arc<Mutex<Captured>>) {
        let captured = Arc::new(Mutex::new(Captured::default()));
        let sink = Sink::Memory(Arc::clone(&captured));
        (Self { json, color_out: false, color_err: false, live: false, sink }, captured)
    }

    /// Whether answers are JSON.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// A line of data, for people only; JSON answers go through [`Output::answer`].
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            self.write_out(text.as_ref());
        }
    }

    /// The answer of a command: `value` as JSON on one line, or the lines of `human`.
    pub fn answer(&self, value: &Value, human: impl FnOnce(&Self) -> String) {
        if self.json {
            self.write_out(&value.to_string());
        } else {
            self.write_out(human(self).trim_end_matches('\n'));
        }
    }

    /// One of many JSON objects, on a line of its own.
    pub fn line_json(&self, value: &Value) {
        self.write_out(&value.to_string());
    }

    /// A line of progress, on stderr. Nothing when JSON is asked for.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json {
            self.write_err(text.as_ref());
        }
    }

    /// Something that happened: a JSON line on stdout, or a line on stderr for people.
    pub fn event(&self, value: &Value, human: &str) {
        if self.json {
            self.write_out(&value.to_string());
        } else {
            self.write_err(human);
        }
    }

    /// A warning, on stderr; in JSON `{"warning": …}` on stdout.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.json {
            self.write_out(&json!({ "warning": text.as_ref() }).to_string());
        } else {
            self.write_err(&format!("{} {}", self.paint_err(Paint::Warn, "warning:"), text.as_ref()));
        }
    }

    /// A failure: on stderr for people, on stdout as the last JSON object for programs.
    pub fn error(&self, error: &CliError) {
        if self.json {
            self.write_out(&error.to_json().to_string());
        } else if !error.is_silent() {
            self.write_err(&format!("{} {error}", self.paint_err(Paint::Bad, "error:")));
        }
    }

    /// Text in a colour if stdout has colours.
    #[must_use]
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        colored(self.color_out, paint, text)
    }

    /// Text in a colour if stderr has colours.
    #[must_use]
    pub fn paint_err(&self, paint: Paint, text: &str) -> String {
        colored(self.color_err, paint, text)
    }

    /// Starts a sequence of timed steps.
    #[must_use]
    pub fn steps(&self) -> Steps {
        let now = Instant::now();
        Steps { output: self.clone(), started: now, last: now, spinner: None }
    }

    fn write_out(&self, line: &str) {
        match &self.sink {
            Sink::Process => put(io::stdout().lock(), line),
            Sink::Memory(captured) => push(&mut captured.lock().unwrap_or_else(PoisonError::into_inner).out, line),
        }
    }

    fn write_err(&self, line: &str) {
        match &self.sink {
            Sink::Process => put(io::stderr().lock(), line),
            Sink::Memory(captured) => push(&mut captured.lock().unwrap_or_else(PoisonError::into_inner).err, line),
        }
    }
}

/// A reader that went away (`coalition market | head -1`) is not our failure; there is nobody left to tell.
fn put(mut stream: impl Write, line: &str) {
    let _ = stream.write_all(format!("{line}\n").as_bytes()).and_then(|()| stream.flush());
}

fn push(buffer: &mut String, line: &str) {
    buffer.push_str(line);
    buffer.push('\n');
}

fn colored(on: bool, paint: Paint, text: &str) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", paint.code()) } else { text.to_owned() }
}

/// Timed steps: a spinner while one runs, a line when it is done.
#[derive(Debug)]
pub struct Steps {
    output: Output,
    started: Instant,
    last: Instant,
    spinner: Option<Spinner>,
}

impl Steps {
    /// Says what happens now. Shown live on a terminal only.
    pub fn begin(&mut self, doing: &str) {
        self.spinner = None;
        if self.output.live {
            self.spinner = Some(Spinner::start(doing, self.last));
        }
    }

    /// A step is done: prints its name, how long it took and what came of it; `fields` go into the JSON object.
    pub fn done(&mut self, name: &str, text: &str, fields: Value) {
        let now = Instant::now();
        let (took, at) = (now - self.last, now - self.started);
        self.last = now;
        self.spinner = None;
        if self.output.json {
            self.output.write_out(&step_json(name, took, at, fields).to_string());
            return;
        }
        let mark = if self.output.color_err { self.output.paint_err(Paint::Good, "✓ ") } else { String::new() };
        let time = format!("{:>TIME_WIDTH$}", values::duration(took));
        let time = self.output.paint_err(Paint::Dim, &time);
        self.output.write_err(format!("{mark}{name:<NAME_WIDTH$} {time}  {text}").trim_end());
    }

    /// Time since the first step began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the spinner without a line, before something else is printed.
    pub fn pause(&mut self) {
        self.spinner = None;
    }

    /// Where the steps are printed.
    #[must_use]
    pub const fn output(&self) -> &Output {
        &self.output
    }
}

fn step_json(name: &str, took: Duration, at: Duration, fields: Value) -> Value {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut object = Map::new();
    object.insert("step".into(), name.into());
    object.insert("took_ms".into(), ms(took).into());
    object.insert("at_ms".into(), ms(at).into());
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    Value::Object(object)
}

/// A line on stderr that is redrawn until dropped.
#[derive(Debug)]
struct Spinner {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Spinner {
    fn start(doing: &str, since: Instant) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (stop, doing) = (Arc::clone(&over), doing.to_owned());
        let draw = move || {
            for frame in FRAMES.iter().cycle() {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let _ = write!(io::stderr(), "\r\x1b[2K{frame} {doing} {}", values::duration(since.elapsed()));
                thread::park_timeout(FRAME);
            }
            let _ = write!(io::stderr(), "\r\x1b[2K");
        };
        Self { over, thread: Some(thread::spawn(draw)) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Rows under headings, columns as wide as their widest cell; the last one is not padded.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_mode_prints_one_object_a_line_and_nothing_else() {
        let (output, captured) = Output::captured(true);
        let mut steps = output.steps();
        steps.begin("sealing");
        steps.done("sealed", "for people", json!({ "members": 3 }));
        output.note("progress for people");
        output.line("a line for people");
        output.warn("careful");
        output.answer(&json!({ "grant": "ab" }), |_| "grant ab".into());
        output.error(&CliError::input("bad", "it failed\nbadly"));
        let captured = captured.lock().unwrap().clone();
        assert_eq!(captured.err, "");
        let objects: Vec<Value> = captured.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 4);
        assert!(objects.iter().all(Value::is_object));
        assert_eq!((&objects[0]["step"], &objects[0]["members"]), (&json!("sealed"), &json!(3)));
        assert_eq!(objects[3]["error"]["code"], "bad");
    }

    #[test]
    fn people_get_data_on_stdout_and_progress_on_stderr() {
        let (output, captured) = Output::captured(false);
        output.steps().done("sealed", "to 3 of 3 members", Value::Null);
        output.answer(&json!({}), |out| out.paint(Paint::Good, "grant ab\n"));
        output.error(&CliError::input("bad", "it failed").hint("run `x`"));
        let captured = captured.lock().unwrap().clone();
        assert_eq!(captured.out, "grant ab\n");
        assert!(captured.err.starts_with("sealed "), "{}", captured.err);
        assert!(captured.err.ends_with("error: it failed\n\nhint: run `x`\n"), "{}", captured.err);
    }

    #[test]
    fn tables_line_up() {
        let rows =
            vec![vec!["a".into(), "long cell".into(), "x".into()], vec!["bbb".into(), "é".into(), String::new()]];
        assert_eq!(table(&["ONE", "TWO", "THREE"], &rows), "ONE  TWO        THREE\na    long cell  x\nbbb  é");
    }
}
