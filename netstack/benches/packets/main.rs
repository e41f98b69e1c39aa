//! What a packet costs: parsing it, finding its flow, moving the data of a connection, and splitting a super-packet.

mod traffic;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portcullis_netstack::packet::{ChecksumPolicy, IpPacket};
use portcullis_netstack::segment::segments;
use traffic::{Associations, Connection, SEGMENT, super_packet, tcp, udp};

/// Segments that one read of a WireGuard socket brings, and bytes that one turn of a flow sends.
const SEGMENTS: usize = 32;
const BYTES: usize = 64 * 1024;

fn packets(criterion: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "instants have no other beginning; it is never compared")]
    let now = Instant::now();
    let mut group = criterion.benchmark_group("packets");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);

    for (name, packet) in [
        ("parse/tcp_v4", tcp(false, SEGMENT)),
        ("parse/tcp_v6", tcp(true, SEGMENT)),
        ("parse/udp_v4", udp(10_000, 1_000)),
    ] {
        for (policy, checksums) in [("trusted", ChecksumPolicy::Trusted), ("verify", ChecksumPolicy::Verify)] {
            group.bench_function(format!("{name}_{policy}"), |bencher| {
                bencher.iter(|| IpPacket::parse(black_box(&packet), checksums).is_ok());
            });
        }
    }

    for flows in [100, 10_000] {
        let mut associations = Associations::new(now, flows);
        group.bench_function(format!("known_flow/{flows}"), |bencher| bencher.iter(|| associations.datagram()));
    }

    group.throughput(Throughput::Bytes(BYTES as u64));
    let (packet, offload) = super_packet();
    let mut scratch = Vec::new();
    group.bench_function("split", |bencher| {
        bencher.iter(|| segments(black_box(&packet), offload, &mut scratch, |segment| _ = black_box(segment)));
    });

    let mut connection = Connection::new(now);
    group.bench_function("tcp_down", |bencher| bencher.iter(|| connection.download(BYTES)));
    let mut connection = Connection::new(now);
    group.throughput(Throughput::Bytes((SEGMENTS * SEGMENT) as u64));
    group.bench_function("tcp_up", |bencher| bencher.iter(|| connection.upload(SEGMENTS)));
    group.finish();
}

criterion_group!(benches, packets);
criterion_main!(benches);
