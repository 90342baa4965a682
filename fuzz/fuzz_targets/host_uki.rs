#![no_main]
//! Images that boot by themselves, as a stranger made them: disks are told apart, unified kernel images taken apart.

use std::io::Cursor;

use coalition_host::machine::bootable::{Bootable, find};
use coalition_host::machine::uki;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let size = data.len() as u64;
    if let Ok(Some(Bootable::Uki { parts, command_line, system })) = find(&mut Cursor::new(data), size) {
        for section in [Some(parts.linux), parts.initrd, parts.cmdline, parts.osrel].into_iter().flatten() {
            assert!(section.offset + section.size <= size);
        }
        assert!(!command_line.contains(char::is_control) && command_line.len() <= 2047);
        assert!(system.is_none_or(|name| !name.contains(char::is_control)));
    }
    // Most inputs have no kernel worth the name; their headers are looked at all the same.
    if let Ok(parts) = uki::find(data, size) {
        assert!(parts.linux.size > 0 && parts.linux.offset + parts.linux.size <= size);
    }
    if let Ok(line) = uki::command_line(data) {
        assert_eq!(uki::command_line(line.as_bytes()), Ok(line));
    }
});
