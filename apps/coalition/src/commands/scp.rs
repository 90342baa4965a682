//! `coalition scp`: OpenSSH's file copier, with the key and host key that `coalition ssh` uses.

use std::ffi::OsString;

use super::ssh;
use crate::{
    cli::ScpArgs,
    error::{CliError, Result},
    grants::{Access, Grant},
    home::Home,
    output::Output,
};

/// A path as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    /// On this machine.
    Here(&'a str),
    /// On a grant's: the newest one's when none is named.
    There { grant: Option<&'a str>, path: &'a str },
}

impl<'a> Place<'a> {
    /// The grant it is on, "" for the newest; none when it is here.
    fn grant(&self) -> Option<&'a str> {
        match self {
            Place::There { grant, .. } => Some(grant.unwrap_or_default()),
            Place::Here(_) => None,
        }
    }
}

/// What goes where: one grant, one direction.
#[derive(Debug, PartialEq, Eq)]
struct Copying<'a> {
    grant: Option<&'a str>,
    from: Vec<Place<'a>>,
    to: Place<'a>,
}

/// Replaces this process with OpenSSH's `scp`.
///
/// # Errors
/// Paths that are on no machine or on several, an unknown or ended grant, or no `scp` on this machine. On success it does not
/// return.
pub fn run(home: &Home, args: &ScpArgs, output: &Output) -> Result<()> {
    let copying = plan(&args.paths)?;
    let (grant, access) = ssh::enter(home, copying.grant, output)?;
    Err(ssh::become_program("scp", &arguments(&grant, &access, args, &copying)))
}

/// As `scp` does: a colon before any slash makes a path another machine's.
fn place(text: &str) -> Place<'_> {
    match text.split_once(':') {
        Some((grant, path)) if !grant.contains('/') => {
            Place::There { grant: Some(grant).filter(|grant| !grant.is_empty()), path }
        }
        _ => Place::Here(text),
    }
}

fn plan(paths: &[String]) -> Result<Copying<'_>> {
    let wrong = |message: &str| {
        Err(CliError::input("bad_paths", message).hint(
            "write GRANT:PATH on the machine, as in `coalition scp 3f9c:out.txt .`; ./a:b for a file of that name",
        ))
    };
    let mut places: Vec<Place<'_>> = paths.iter().map(|path| place(path)).collect();
    let Some(to) = places.pop() else { return wrong("there is nothing to copy") };
    let named: Vec<&str> = places.iter().chain([&to]).filter_map(|place| place.grant()).collect();
    let Some(grant) = named.first().copied() else { return wrong("every path is on this machine") };
    if named.iter().any(|other| *other != grant) {
        return wrong("the paths are on several machines");
    }
    let is_there = |place: &Place<'_>| matches!(place, Place::There { .. });
    let one_way = if is_there(&to) { !places.iter().any(is_there) } else { places.iter().all(is_there) };
    if !one_way {
        return wrong("some of what to copy is where it is to be copied to");
    }
    Ok(Copying { grant: Some(grant).filter(|grant| !grant.is_empty()), from: places, to })
}

fn arguments(grant: &Grant, access: &Access, args: &ScpArgs, copying: &Copying<'_>) -> Vec<OsString> {
    let mut arguments = ssh::options(grant);
    arguments.extend(["-P".into(), access.port.to_string().into()]);
    for (wanted, option) in [(args.recursive, "-r"), (args.preserve, "-p")] {
        if wanted {
            arguments.push(option.into());
        }
    }
    arguments.push("--".into());
    let word = |place: &Place<'_>| match place {
        // A name that `scp` would take for an option's or another machine's.
        Place::Here(path) if path.starts_with('/') || path.starts_with('.') => (*path).into(),
        Place::Here(path) => format!("./{path}").into(),
        Place::There { path, .. } if access.host.contains(':') => {
            format!("{}@[{}]:{path}", access.user, access.host).into()
        }
        Place::There { path, .. } => format!("{}@{}:{path}", access.user, access.host).into(),
    };
    arguments.extend(copying.from.iter().chain([&copying.to]).map(word));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(words: &str) -> std::result::Result<(Option<String>, usize), String> {
        let paths: Vec<String> = words.split(' ').map(str::to_owned).collect();
        plan(&paths)
            .map(|copying| (copying.grant.map(str::to_owned), copying.from.len()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn one_grant_and_one_direction() {
        assert_eq!(planned("a b 3f9c:/dir"), Ok((Some("3f9c".into()), 2)));
        assert_eq!(planned("3f9c:a 3f9c:b ."), Ok((Some("3f9c".into()), 2)));
        assert_eq!(planned(":a ."), Ok((None, 1)));
        assert_eq!(planned("./a:b :"), Ok((None, 1)));
        for (words, said) in [
            ("a b", "every path"),
            ("aa:x bb:y .", "several machines"),
            (":x bb:y", "several machines"),
            ("aa:x b aa:", "where it is to be"),
            ("a aa:x .", "where it is to be"),
        ] {
            assert!(planned(words).is_err_and(|error| error.contains(said)), "{words}");
        }
    }

    #[test]
    fn a_colon_before_any_slash_is_a_machine() {
        assert_eq!(place("3f9c:"), Place::There { grant: Some("3f9c"), path: "" });
        assert_eq!(place(":a:b"), Place::There { grant: None, path: "a:b" });
        for here in ["a", "./a:b", "/x/a:b", "-r"] {
            assert_eq!(place(here), Place::Here(here));
        }
    }
}
