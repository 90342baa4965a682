//! Terminal modes as SSH encodes them (RFC 4254, section 8), applied to a Linux terminal.

use std::os::fd::AsFd;

use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Char, Termios, tcgetattr,
    tcsetattr,
};

enum Mode {
    Char(Char),
    Input(InputFlags),
    Local(LocalFlags),
    Output(OutputFlags),
}

fn mode_of(number: u8) -> Option<Mode> {
    let chars = [
        (1, Char::VINTR),
        (2, Char::VQUIT),
        (3, Char::VERASE),
        (4, Char::VKILL),
        (5, Char::VEOF),
        (6, Char::VEOL),
        (7, Char::VEOL2),
        (8, Char::VSTART),
        (9, Char::VSTOP),
        (10, Char::VSUSP),
        (12, Char::VREPRINT),
        (13, Char::VWERASE),
        (14, Char::VLNEXT),
        (18, Char::VDISCARD),
    ];
    let inputs = [
        (30, InputFlags::IGNPAR),
        (31, InputFlags::PARMRK),
        (32, InputFlags::INPCK),
        (33, InputFlags::ISTRIP),
        (34, InputFlags::INLCR),
        (35, InputFlags::IGNCR),
        (36, InputFlags::ICRNL),
        (38, InputFlags::IXON),
        (39, InputFlags::IXANY),
        (40, InputFlags::IXOFF),
        (41, InputFlags::IMAXBEL),
        (42, InputFlags::IUTF8),
    ];
    let locals = [
        (50, LocalFlags::ISIG),
        (51, LocalFlags::ICANON),
        (53, LocalFlags::ECHO),
        (54, LocalFlags::ECHOE),
        (55, LocalFlags::ECHOK),
        (56, LocalFlags::ECHONL),
        (57, LocalFlags::NOFLSH),
        (58, LocalFlags::TOSTOP),
        (59, LocalFlags::IEXTEN),
        (60, LocalFlags::ECHOCTL),
        (61, LocalFlags::ECHOKE),
        (62, LocalFlags::PENDIN),
    ];
    let outputs = [
        (70, OutputFlags::OPOST),
        (72, OutputFlags::ONLCR),
        (73, OutputFlags::OCRNL),
        (74, OutputFlags::ONOCR),
        (75, OutputFlags::ONLRET),
    ];
    None.or_else(|| chars.into_iter().find(|c| c.0 == number).map(|c| Mode::Char(c.1)))
        .or_else(|| inputs.into_iter().find(|c| c.0 == number).map(|c| Mode::Input(c.1)))
        .or_else(|| locals.into_iter().find(|c| c.0 == number).map(|c| Mode::Local(c.1)))
        .or_else(|| outputs.into_iter().find(|c| c.0 == number).map(|c| Mode::Output(c.1)))
}

fn apply_one(termios: &mut Termios, number: u8, value: u32) {
    match mode_of(number) {
        // 255 is how SSH says "disabled"; Linux says 0.
        Some(Mode::Char(index)) => {
            let byte = u8::try_from(value).unwrap_or(0);
            termios.control_chars[index as usize] = if byte == 255 { 0 } else { byte };
        }
        Some(Mode::Input(flag)) => termios.input_flags.set(flag, value != 0),
        Some(Mode::Local(flag)) => termios.local_flags.set(flag, value != 0),
        Some(Mode::Output(flag)) => termios.output_flags.set(flag, value != 0),
        None => {}
    }
}

/// Applies what the client asked for; numbers Linux has no word for are ignored, as RFC 4254 says.
pub(crate) fn apply_modes(tty: impl AsFd, modes: &[(u8, u32)]) -> nix::Result<()> {
    let mut termios = tcgetattr(&tty)?;
    for (number, value) in modes {
        apply_one(&mut termios, *number, *value);
    }
    termios.control_flags.insert(ControlFlags::CS8);
    tcsetattr(&tty, SetArg::TCSANOW, &termios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_off_and_a_new_interrupt_key_arrive_at_the_terminal() {
        let pair = nix::pty::openpty(None, None).unwrap();
        apply_modes(&pair.slave, &[(53, 0), (1, 7), (2, 255), (99, 1)]).unwrap();
        let now = tcgetattr(&pair.slave).unwrap();
        assert!(!now.local_flags.contains(LocalFlags::ECHO));
        assert_eq!(now.control_chars[Char::VINTR as usize], 7);
        assert_eq!(now.control_chars[Char::VQUIT as usize], 0);
    }
}
