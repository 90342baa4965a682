#![no_main]
//! The documents of an OCI image, as a stranger's archive has them. The first byte says which.

use coalition_host::rootfs::oci::{Digest, check_layout, choose, config, manifest};
use coalition_host::rootfs::{Whiteout, whiteout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match which % 5 {
        0 => drop(check_layout(rest)),
        1 => drop(choose(rest, "amd64")),
        2 => {
            if let Ok(manifest) = manifest(rest) {
                assert!(!manifest.layers.is_empty());
                let digest = manifest.config.digest;
                assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
            }
        }
        3 => {
            if let Ok((config, _)) = config(rest, "amd64") {
                assert!(config.command.iter().all(|word| !word.contains('\0')));
                assert!(config.env.iter().all(|(name, value)| coalition_host::spec::check_env(name, value).is_ok()));
            }
        }
        _ => {
            if let Ok(Some(Whiteout::Path(path) | Whiteout::Contents(path))) = whiteout(rest) {
                let fits = |name: &Vec<u8>| !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
                assert!(path.iter().all(fits));
            }
        }
    }
});
