//! The tunnel's descriptor as a device of the TCP stack.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use tokio::io::unix::AsyncFd;

use super::packet::MTU;

/// One packet in, any number out. A packet that the kernel does not take is lost, as on any network.
pub(super) struct Device {
    tun: Rc<AsyncFd<OwnedFd>>,
    incoming: Vec<u8>,
    /// Bytes of the packet that waits in `incoming`; 0 for none.
    waiting: usize,
    outgoing: Vec<u8>,
}

impl Device {
    pub(super) fn new(tun: Rc<AsyncFd<OwnedFd>>) -> Self {
        Self { tun, incoming: vec![0; MTU], waiting: 0, outgoing: vec![0; MTU] }
    }

    /// Reads a packet; it waits to be looked at.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else when the interface is gone.
    pub(super) fn read(&mut self) -> std::io::Result<usize> {
        Ok(nix::unistd::read(self.tun.get_ref(), &mut self.incoming)?)
    }

    /// The first bytes of what was read last.
    pub(super) fn packet(&self, length: usize) -> &[u8] {
        &self.incoming[..length.min(self.incoming.len())]
    }

    /// Has the stack find what was read last.
    pub(super) fn present(&mut self, length: usize) {
        self.waiting = length.min(self.incoming.len());
    }

    /// Has the stack find this packet.
    pub(super) fn present_other(&mut self, packet: &[u8]) {
        let length = packet.len().min(self.incoming.len());
        self.incoming[..length].copy_from_slice(&packet[..length]);
        self.waiting = length;
    }

    /// Sends a packet made by hand.
    pub(super) fn send(&self, packet: &[u8]) {
        let _ = nix::unistd::write(self.tun.get_ref(), packet);
    }
}

/// A packet for the stack.
pub(super) struct Incoming<'d>(&'d [u8]);

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a packet from the stack.
pub(super) struct Outgoing<'d> {
    tun: &'d AsyncFd<OwnedFd>,
    room: &'d mut [u8],
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let length = length.min(self.room.len());
        let packet = &mut self.room[..length];
        let done = f(packet);
        let _ = nix::unistd::write(self.tun.get_ref(), packet);
        done
    }
}

impl phy::Device for Device {
    type RxToken<'d> = Incoming<'d>;
    type TxToken<'d> = Outgoing<'d>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let length = std::mem::take(&mut self.waiting);
        let (incoming, outgoing) = (&self.incoming[..length], Outgoing { tun: &self.tun, room: &mut self.outgoing });
        (length > 0).then_some((Incoming(incoming), outgoing))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing { tun: &self.tun, room: &mut self.outgoing })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
