//! Pure operations of the two cores, for `scripts/counts` to count their instructions.
//!
//! ```text
//! counts          the names of the operations, and how often each is repeated
//! counts NAME     sets one up, then repeats it in `measured`
//! ```
//!
//! An operation is set up outside of [`measured`] and done inside; only what is inside is counted. The policies and the traffic
//! are those of the benches.
#![expect(clippy::indexing_slicing, reason = "the documents are made here")]
#![expect(clippy::print_stdout, reason = "it answers a script")]

#[path = "../../../policy/benches/evaluate/shapes.rs"]
mod shapes;
#[path = "../../../netstack/benches/packets/traffic.rs"]
mod traffic;

use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use portcullis_netstack::packet::{ChecksumPolicy, IpPacket};
use portcullis_netstack::segment::segments;
use shapes::{NOW, Question, Shape, compile};
use traffic::{Associations, Connection, SEGMENT, super_packet, tcp, udp};

/// One operation, set up.
type Operation = Box<dyn FnMut()>;

/// An operation to be set up, with its name and how often it is worth repeating: so often that chance (the seeds of hash tables,
/// where a ring wraps) moves a figure by far less than the tolerance.
struct Entry {
    name: String,
    times: u64,
    set_up: Box<dyn FnOnce() -> Operation>,
}

fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut add = |name: String, times: u64, set_up: Box<dyn FnOnce() -> Operation>| {
        entries.push(Entry { name, times, set_up });
    };
    for rules in [10, 1_000] {
        add(format!("evaluate/prefixes/{rules}"), 4_000, Box::new(move || evaluate(Shape::Prefixes, rules)));
    }
    for (name, shape) in Shape::ALL {
        add(format!("evaluate/{name}/10000"), 2_000, Box::new(move || evaluate(shape, 10_000)));
    }
    for (name, packet) in
        [("tcp_v4", tcp(false, SEGMENT)), ("tcp_v6", tcp(true, SEGMENT)), ("udp_v4", udp(10_000, 1_000))]
    {
        for (policy, checksums) in [("trusted", ChecksumPolicy::Trusted), ("verify", ChecksumPolicy::Verify)] {
            let packet = packet.clone();
            add(format!("parse/{name}_{policy}"), 1_000, Box::new(move || parse(packet, checksums)));
        }
    }
    add(
        "known_flow/10000".to_owned(),
        20_000,
        Box::new(|| {
            let mut associations = Associations::new(Instant::now(), 10_000);
            Box::new(move || associations.datagram())
        }),
    );
    add(
        "split/64k".to_owned(),
        100,
        Box::new(|| {
            let (packet, offload) = super_packet();
            let mut scratch = Vec::new();
            Box::new(move || segments(black_box(&packet), offload, &mut scratch, |segment| _ = black_box(segment)))
        }),
    );
    add(
        "tcp_up/32_segments".to_owned(),
        500,
        Box::new(|| {
            let mut connection = Connection::new(Instant::now());
            Box::new(move || connection.upload(32))
        }),
    );
    add(
        "tcp_down/64k".to_owned(),
        500,
        Box::new(|| {
            let mut connection = Connection::new(Instant::now());
            // Until the congestion window is wide open.
            (0..200).for_each(|_| connection.download(64 * 1024));
            Box::new(move || connection.download(64 * 1024))
        }),
    );
    entries
}

fn evaluate(shape: Shape, rules: usize) -> Operation {
    let ruleset = compile(&shape.policy(rules));
    // A prime stride: questions walk over rules and users without a pattern.
    let questions: Vec<Question> = (0..1_009).map(|number| shape.question(number * 7_919 % rules, rules)).collect();
    let mut next = 0;
    Box::new(move || {
        black_box(ruleset.evaluate(black_box(&questions[next].request()), NOW));
        next = (next + 1) % questions.len();
    })
}

fn parse(packet: Vec<u8>, checksums: ChecksumPolicy) -> Operation {
    assert!(IpPacket::parse(&packet, checksums).is_ok());
    Box::new(move || {
        black_box(IpPacket::parse(black_box(&packet), checksums).is_ok());
    })
}

/// The only function whose instructions, and those of what it calls, are counted.
#[inline(never)]
fn measured(operation: &mut Operation, times: u64) {
    for _ in 0..times {
        operation();
    }
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let mut entries = entries();
    let Some(name) = arguments.next() else {
        entries.iter().for_each(|entry| println!("{} {}", entry.name, entry.times));
        return ExitCode::SUCCESS;
    };
    let Some(place) = entries.iter().position(|entry| entry.name == name) else {
        eprintln!("counts: there is no operation {name}");
        return ExitCode::from(64);
    };
    let entry = entries.swap_remove(place);
    let mut operation = (entry.set_up)();
    // What happens only once, such as memory that grows to its size, is not the operation's.
    operation();
    measured(&mut operation, entry.times);
    ExitCode::SUCCESS
}
