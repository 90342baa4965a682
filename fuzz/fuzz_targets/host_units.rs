#![no_main]
//! What `systemctl show` says of units, which any user may have named and described; and what is asked of `systemd-run`.

use std::time::Duration;

use coalition_host::units::{Unit, describe_grant, is_ours, of_grant, parse_shown};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for shown in parse_shown(text) {
        assert!(is_ours(&shown.name) && shown.dir.is_absolute());
    }
    let unit = Unit {
        name: of_grant("00aa11bb"),
        description: describe_grant("00aa11bb", text),
        command: vec!["/runner".into(), text.into()],
        env: vec![],
        output: text.into(),
        log: text.into(),
        lasts: Duration::from_secs(1),
    };
    if let Ok(words) = unit.arguments() {
        assert!(words.iter().all(|word| !word.contains('\n')));
        let options = words.iter().take_while(|word| *word != "--");
        assert_eq!(options.filter(|word| word.starts_with("--property=")).count(), 9);
    }
});
