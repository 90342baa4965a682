//! What a fresh cloud host is told before its first boot: one host key, one login, and when to switch itself off.
//!
//! The user data can be read by whoever may describe the instance, and on the host by root. It holds the host key of the
//! *host*, made for this one instance, and nothing of a requester: image, workload and the workload's own keys come over
//! SSH once the host has shown the pinned key.

use coalition_host::cloud_config::CloudConfig;
use coalition_host::keys::KeyPair;
use zeroize::Zeroizing;

/// What is decided of a host before it exists.
#[derive(Clone, Copy, Debug)]
pub struct FirstBoot<'a> {
    /// The one host key it shows.
    pub host: &'a KeyPair,
    /// The one key root may log in with, an `authorized_keys` line.
    pub login_public: &'a str,
    /// When it switches itself off whatever happens, Unix seconds.
    pub poweroff_at_s: u64,
    /// The longest it runs by its own count, seconds: a clock that is far behind keeps no machine running.
    pub longest_s: u64,
}

/// The user data: keys and timer. Wiped when dropped, as it holds a private key.
#[must_use]
pub fn user_data(boot: &FirstBoot<'_>) -> Zeroizing<Vec<u8>> {
    let timer = poweroff_timer(boot.poweroff_at_s, boot.longest_s);
    let config = CloudConfig {
        host_private: boot.host.private_openssh.expose(),
        host_public: &boot.host.public_openssh,
        login_public: boot.login_public,
        boot_command: Some(&timer),
    };
    config.document()
}

/// The dead-man's timer, armed early in every boot. The provider terminates instances that switch themselves off.
///
/// It must not wait for the timer's own start: that comes after the stage of the boot this runs in.
#[must_use]
pub fn poweroff_timer(at_s: u64, longest_s: u64) -> String {
    format!(
        "left=$(({at_s} - $(date +%s))); \
         [ \"$left\" -ge 1 ] || left=1; \
         [ \"$left\" -le {longest_s} ] || left={longest_s}; \
         if [ -d /run/systemd/system ]; then \
         systemd-run --no-block --unit=coalition-deadline --on-active=\"$left\" --timer-property=AccuracySec=1s systemctl poweroff; \
         else (sleep \"$left\"; poweroff) >/dev/null 2>&1 & fi"
    )
}

/// Exit status of [`moved_timer`] where no timer of ours is armed by systemd: nothing is armed there then.
pub const NO_TIMER_TO_MOVE: u32 = 4;

/// Arms the timer for another time, and only then disarms the others. Run again it changes nothing more. After a reboot of the
/// host the first timer counts again: what ran on it is gone then anyway.
#[must_use]
pub fn moved_timer(at_s: u64, longest_s: u64) -> String {
    format!(
        "armed() {{ systemctl list-units --plain --no-legend --type=timer 'coalition-deadline*'; }}; \
         [ -d /run/systemd/system ] && armed | grep -q coalition-deadline || exit {NO_TIMER_TO_MOVE}; \
         left=$(({at_s} - $(date +%s))); \
         [ \"$left\" -ge 1 ] || left=1; \
         [ \"$left\" -le {longest_s} ] || left={longest_s}; \
         unit=coalition-deadline-{at_s}; \
         systemctl is-active --quiet \"$unit.timer\" || \
         systemd-run --quiet --unit=\"$unit\" --on-active=\"$left\" --timer-property=AccuracySec=1s systemctl poweroff || exit 5; \
         armed | while read -r other rest; do \
         [ \"$other\" = \"$unit.timer\" ] || systemctl stop \"$other\" || exit 6; done"
    )
}
