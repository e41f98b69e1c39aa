//! The TUN device: made, addressed and brought up here, gone when dropped.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::LinkUnspec;
use tokio::io::unix::AsyncFd;

use super::holder::Holder;
use super::netlink::{Netlink, system_error};
use crate::config::resolved::TunConfig;
use crate::sys::{self, is_errno};

/// Bytes of the `virtio_net_hdr` before every packet read from or written to the device.
pub const VIRTIO_HEADER: usize = 10;

/// What the reader can take beyond ordinary packets: flags of [`TunDevice::set_offload`].
pub mod offload {
    /// Packets whose transport checksum is only the pseudo-header's sum.
    pub const CHECKSUM: u32 = libc::TUN_F_CSUM;
    /// TCP over IPv4 super-packets. Needs [`CHECKSUM`].
    pub const TSO4: u32 = libc::TUN_F_TSO4;
    /// TCP over IPv6 super-packets. Needs [`CHECKSUM`].
    pub const TSO6: u32 = libc::TUN_F_TSO6;
    /// UDP over IPv4 super-packets (Linux 6.2). Needs [`CHECKSUM`], and [`USO6`] with it.
    pub const USO4: u32 = libc::TUN_F_USO4;
    /// UDP over IPv6 super-packets (Linux 6.2). Needs [`CHECKSUM`], and [`USO4`] with it.
    pub const USO6: u32 = libc::TUN_F_USO6;
}

/// Why the TUN device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or the container does not show it.
    #[error("/dev/net/tun is missing: load it with `modprobe tun`, or give the container the device")]
    NoDriver,
    /// Not allowed to.
    #[error("not permitted to create {name}: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// There is such a device: another process has it open, or it was made to last.
    #[error(
        "{name} is a TUN device already, {}: stop the process, or remove the device with `ip link del {name}`, or set another [tun] name",
        .holder.as_ref().map_or_else(|| "of another process or made to last".to_owned(), |holder| format!("of {holder}"))
    )]
    Busy {
        /// The interface.
        name: String,
        /// Who has it open, where that can be seen.
        holder: Option<Holder>,
    },
    /// An interface of another kind has the name.
    #[error(
        "{name} is already another kind of interface: remove it with `ip link del {name}`, or set another [tun] name"
    )]
    NameTaken {
        /// The interface.
        name: String,
    },
    /// Not a name an interface can have.
    #[error("{name:?} is not an interface name: 1 to 15 bytes, no '/', '%', ':' or blanks")]
    BadName {
        /// What was configured.
        name: String,
    },
    /// An address was refused.
    #[error("cannot give {address} to {name}: {source}")]
    Address {
        /// The interface.
        name: String,
        /// The address with its prefix length.
        address: ipnet::IpNet,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {doing} {name}: {source}")]
    Setup {
        /// What was tried.
        doing: &'static str,
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A queue of a TUN device of this process. Dropping the last one removes the device, its addresses and the routes
/// through it.
///
/// The kernel spreads flows over the queues by a hash of addresses and ports that is the same in both directions, and
/// keeps a flow in the queue it was last written to (`Documentation/networking/tuntap.rst`, "Multiqueue tuntap
/// interface"): whoever answers from the queue a TCP or UDP flow came in by has the flow for good. Packets without ports
/// are told apart by their addresses only, so a ping may change its queue when an ICMP error is written by another one,
/// and is then a new flow.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    name: String,
    index: u32,
    mtu: u16,
}

impl TunDevice {
    /// Creates the device with its first queue, sets MTU and addresses, and brings it up. `queues`: how many there will
    /// be, see [`another_queue`](Self::another_queue).
    ///
    /// Packets come and go with a [`VIRTIO_HEADER`] in front. Offloads are off: packets are at most MTU-sized with complete
    /// checksums. The descriptor does not block. Addresses put no route into the main table. Call on a tokio runtime.
    pub async fn create(config: &TunConfig, queues: usize) -> Result<Self, TunError> {
        let name = config.name.clone();
        let fail = |doing| {
            let name = name.clone();
            move |source| TunError::Setup { doing, name, source }
        };
        let flags = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let file = match open(&name, flags | libc::IFF_TUN_EXCL) {
            Err(TunError::Busy { name, .. }) if !is_tun(&name).await => return Err(TunError::NameTaken { name }),
            opened => opened?,
        };
        let index = if_nametoindex(name.as_str()).map_err(io::Error::from).map_err(fail("look up"))?;
        // A link-local address of its own would only make the kernel talk (router solicitations, MLD) into the device.
        // Without IPv6 in the kernel there is nothing to quieten.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");

        let netlink = Netlink::connect().map_err(fail("open netlink for"))?;
        let mtu = LinkUnspec::new_with_index(index).mtu(u32::from(config.mtu)).build();
        netlink.handle.link().set(mtu).execute().await.map_err(system_error).map_err(fail("set the MTU of"))?;
        for address in &config.addresses {
            add_address(&netlink, index, address.addr(), address.prefix_len())
                .await
                .map_err(|source| TunError::Address { name: name.clone(), address: *address, source })?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        netlink.handle.link().set(up).execute().await.map_err(system_error).map_err(fail("bring up"))?;
        Ok(Self { file, name, index, mtu: config.mtu })
    }

    /// One more queue of a device that was created for more than one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn another_queue(&self) -> Result<Self, TunError> {
        let file = open(&self.name, libc::IFF_MULTI_QUEUE)?;
        Ok(Self { file, name: self.name.clone(), ..*self })
    }

    /// Registers the device with the tokio runtime of the calling thread, for waiting until it can be read or written.
    pub fn register(self) -> io::Result<AsyncFd<Self>> {
        sys::register(self)
    }

    /// Reads one frame: a `virtio_net_hdr` and a packet. `WouldBlock` when there is none.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    /// Writes one frame: a `virtio_net_hdr` and a packet.
    pub fn write(&self, frame: &[u8]) -> io::Result<usize> {
        (&self.file).write(frame)
    }

    /// Says which of [`offload`] the reader can take. None at creation.
    pub fn set_offload(&self, flags: u32) -> io::Result<()> {
        sys::set_tun_offload(self.file.as_fd(), flags)
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// MTU in bytes, without the `virtio_net_hdr`.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for TunDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Opens `/dev/net/tun` and attaches it to the device `name`. `flags`: `IFF_*` beyond those every queue has.
fn open(wanted: &str, flags: libc::c_int) -> Result<File, TunError> {
    let name = || wanted.to_owned();
    if !(1..libc::IFNAMSIZ).contains(&wanted.len())
        || wanted.contains(|c: char| matches!(c, '/' | '%' | ':' | '\0') || c.is_whitespace())
        || matches!(wanted, "." | "..")
    {
        return Err(TunError::BadName { name: name() });
    }
    let setup = |source| TunError::Setup { doing: "create", name: name(), source };
    let attach = || {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        sys::attach_tun(file.as_fd(), wanted, flags | libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
        Ok(file)
    };
    let file = attach().map_err(|source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDriver,
        Some(Errno::EPERM | Errno::EACCES) => TunError::NotPermitted { name: name() },
        Some(Errno::EBUSY) => TunError::Busy { name: name(), holder: Holder::of_tun(wanted) },
        _ => setup(source),
    })?;
    // The crate has no flag for queues, so it adopts what was attached.
    let mut configuration = tun::Configuration::default();
    configuration.raw_fd(file.into_raw_fd()).tun_name(wanted);
    let device = tun::create(&configuration).map_err(io::Error::from).map_err(setup)?;
    device.set_nonblock().map_err(setup)?;
    Ok(sys::into_file(device))
}

/// Whether the interface that has a name is a TUN device.
async fn is_tun(name: &str) -> bool {
    let Ok(netlink) = Netlink::connect() else { return false };
    let mut links = netlink.handle.link().get().match_name(name.to_owned()).execute();
    let Ok(Some(link)) = links.try_next().await else { return false };
    let kinds = link
        .attributes
        .iter()
        .filter_map(|attribute| if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None });
    kinds.flatten().any(|info| *info == LinkInfo::Kind(InfoKind::Tun))
}

/// Adds an address without a connected route: a prefix reaches the device only through the steered routes.
async fn add_address(netlink: &Netlink, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut request = netlink.handle.address().add(index, address, prefix);
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    request.message_mut().attributes.push(AddressAttribute::Flags(flags));
    match request.execute().await.map_err(system_error) {
        Err(error) if is_errno(&error, Errno::EEXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::host::testing::{add_link, in_namespace, ip, let_go, tun_config};

    fn config(name: &str, addresses: &[&str]) -> TunConfig {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        TunConfig { name: name.to_owned(), addresses, ..tun_config(&[], &[]) }
    }

    #[test]
    fn is_up_with_both_families_and_leaves_no_route() {
        in_namespace(async || {
            let before = (ip("-4 route show table main"), ip("-6 route show table main"));
            let tun = TunDevice::create(&config("pcl0", &["100.97.0.1/24", "fd00:97::1/64"]), 1).await.unwrap();
            let link = ip("addr show dev pcl0");
            assert!(link.contains("100.97.0.1/24") && link.contains("fd00:97::1/64"), "{link}");
            assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
            assert!(!link.contains("fe80"), "no link-local address: {link}");
            assert_eq!((tun.name(), tun.mtu()), ("pcl0", 1400));
            assert_eq!(tun.index(), if_nametoindex("pcl0").unwrap());
            assert_eq!(before, (ip("-4 route show table main"), ip("-6 route show table main")));
            let_go(tun);
            assert!(!ip("link show").contains("pcl0"), "the device goes with the process");
        });
    }

    #[test]
    fn frames_carry_a_virtio_header() {
        in_namespace(async || {
            let tun = TunDevice::create(&config("pcl0", &["100.97.0.1/32"]), 1).await.unwrap();
            let tun = tun.register().unwrap();
            tun.get_ref().set_offload(0).unwrap();
            ip("route add 10.0.0.0/8 dev pcl0");
            let socket = UdpSocket::bind("100.97.0.1:4000").unwrap();
            socket.send_to(b"hello", "10.1.2.3:53").unwrap();
            let mut frame = [0; VIRTIO_HEADER + 1500];
            let length = loop {
                let mut ready = tun.readable().await.unwrap();
                if let Ok(result) = ready.try_io(|tun| tun.get_ref().read(&mut frame)) {
                    break result.unwrap();
                }
            };
            assert_eq!(length, VIRTIO_HEADER + 20 + 8 + 5);
            let packet = &frame[VIRTIO_HEADER..length];
            assert_eq!((packet[0], &packet[16..20], &packet[28..]), (0x45, &[10, 1, 2, 3][..], &b"hello"[..]));
            assert_eq!(frame[1], 0, "no segmentation");

            // Answered: addresses and ports swapped, which leaves both checksums valid.
            let mut answer = frame[..length].to_vec();
            answer[..VIRTIO_HEADER].fill(0);
            let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
            let ports = (packet[20..22].to_vec(), packet[22..24].to_vec());
            answer[VIRTIO_HEADER + 12..VIRTIO_HEADER + 16].copy_from_slice(&destination);
            answer[VIRTIO_HEADER + 16..VIRTIO_HEADER + 20].copy_from_slice(&source);
            answer[VIRTIO_HEADER + 20..VIRTIO_HEADER + 22].copy_from_slice(&ports.1);
            answer[VIRTIO_HEADER + 22..VIRTIO_HEADER + 24].copy_from_slice(&ports.0);
            assert_eq!(tun.get_ref().write(&answer).unwrap(), length);
            let mut payload = [0; 16];
            let (length, from) = socket.recv_from(&mut payload).unwrap();
            assert_eq!((&payload[..length], from), (&b"hello"[..], "10.1.2.3:53".parse().unwrap()));
        });
    }

    #[test]
    fn a_flow_stays_in_one_queue_and_a_stranger_gets_none() {
        in_namespace(async || {
            let config = config("pcl0", &["100.97.0.1/32"]);
            let first = TunDevice::create(&config, 2).await.unwrap();
            let queues = [first.another_queue().unwrap(), first];
            let stranger = TunDevice::create(&config, 2).await.unwrap_err();
            assert!(matches!(stranger, TunError::Busy { .. }), "{stranger:?}");
            ip("route add 10.0.0.0/8 dev pcl0");
            let sockets: Vec<_> = (4000..4032).map(|port| UdpSocket::bind(("100.97.0.1", port)).unwrap()).collect();
            let mut seen = std::collections::BTreeMap::new();
            for _ in 0..3 {
                for socket in &sockets {
                    socket.send_to(b"hello", "10.1.2.3:53").unwrap();
                }
                let mut frame = [0; VIRTIO_HEADER + 1500];
                for (number, queue) in queues.iter().enumerate() {
                    while queue.read(&mut frame).is_ok() {
                        let port = u16::from_be_bytes([frame[VIRTIO_HEADER + 20], frame[VIRTIO_HEADER + 21]]);
                        assert_eq!(*seen.entry(port).or_insert(number), number, "the flow of port {port} moved");
                    }
                }
            }
            assert_eq!(seen.len(), sockets.len());
            assert!([0, 1].iter().all(|queue| seen.values().any(|seen| seen == queue)), "both queues are used");
        });
    }

    #[test]
    fn takes_offloads() {
        in_namespace(async || {
            let tun = TunDevice::create(&config("pcl0", &[]), 1).await.unwrap();
            tun.set_offload(offload::CHECKSUM | offload::TSO4 | offload::TSO6).unwrap();
            tun.set_offload(0).unwrap();
            assert!(tun.set_offload(1 << 31).is_err(), "unknown flags are refused");
        });
    }

    #[test]
    fn errors_say_what_to_do() {
        in_namespace(async || {
            let _held = TunDevice::create(&config("pcl0", &[]), 1).await.unwrap();
            add_link("pcl1");
            let busy = TunDevice::create(&config("pcl0", &[]), 1).await.unwrap_err();
            assert!(matches!(busy, TunError::Busy { .. }), "{busy:?}");
            assert!(busy.to_string().contains(&format!("process {}", std::process::id())), "{busy}");
            let taken = TunDevice::create(&config("pcl1", &[]), 1).await.unwrap_err();
            assert!(taken.to_string().contains("ip link del pcl1"), "{taken}");
            for name in ["", "a-name-that-is-too-long", "a/b", "tun%d"] {
                let bad = TunDevice::create(&config(name, &[]), 1).await.unwrap_err();
                assert!(matches!(bad, TunError::BadName { .. }), "{bad:?}");
            }
        });
    }
}
