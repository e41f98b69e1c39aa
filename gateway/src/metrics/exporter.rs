//! What a scrape reads: the shards' counters, summed at that moment.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use portcullis_netstack::DropReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::counters::{Counter, DialHistogram, ShardCounters};
use crate::control::shards::Shards;
use crate::flow_log::FlowLogCounters;
use crate::flow_record::FlowEnd;
use crate::limits::LimitName;
use crate::offramp::Offramps;
use crate::onramp::wireguard::handshake_limits::HandshakeLimit;

/// Every metric of the process.
#[derive(Debug)]
pub struct Exporter(Registry);

impl Exporter {
    /// A registry over the shards' counters, the flow log's, the number of refused reloads, and the off-ramps' health.
    pub fn new(
        shards: Shards,
        flow_log: Arc<FlowLogCounters>,
        reload_failures: Arc<AtomicU64>,
        offramps: Arc<Offramps>,
    ) -> Self {
        let mut registry = Registry::with_prefix("portcullis");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))].to_vec());
        registry.register("build", "What runs", build);
        registry.register_collector(Box::new(Gateway { shards, flow_log, reload_failures, offramps }));
        Self(registry)
    }

    /// The OpenMetrics text of this moment.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 << 10);
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Gateway {
    shards: Shards,
    flow_log: Arc<FlowLogCounters>,
    reload_failures: Arc<AtomicU64>,
    offramps: Arc<Offramps>,
}

impl Gateway {
    fn sum(&self, counter: impl Fn(&ShardCounters) -> &Counter) -> u64 {
        self.shards.counters().fold(0, |sum, shard| sum.wrapping_add(counter(shard).value()))
    }

    fn dial(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = DialHistogram::default().read();
        for shard in self.shards.counters() {
            let (buckets, count, sum) = shard.dial.read();
            for (into, (_, n)) in total.0.iter_mut().zip(buckets) {
                into.1 += n;
            }
            total.1 += count;
            total.2 += sum;
        }
        // A shard counts the bucket before the total, so a scrape in between may see one too many; never below zero.
        let bounded: u64 = total.0.iter().map(|(_, n)| n).sum();
        total.0.push((f64::INFINITY, total.1.saturating_sub(bounded)));
        total
    }
}

impl Collector for Gateway {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        out.family(
            "packets_dropped",
            "Packets and datagrams discarded, by reason",
            DropReason::ALL.iter().map(|reason| {
                let dropped = self.shards.counters().filter_map(|s| s.dropped.get(reason.index()));
                ([("reason", reason.as_str())], dropped.map(Counter::value).sum())
            }),
        )?;
        out.counter("flows_opened", "Flows allowed and established", self.sum(|s| &s.flows_opened))?;
        out.family(
            "flows_ended",
            "Flows ended, by cause",
            FlowEnd::ALL.iter().enumerate().map(|(i, end)| {
                let ended = self.shards.counters().filter_map(|s| s.flows_ended.get(i));
                ([("end", end.as_str())], ended.map(Counter::value).sum())
            }),
        )?;
        out.family(
            "limits_reached",
            "New flows, and growth of flows' buffers, that a limit did not allow",
            LimitName::ALL.iter().map(|limit| {
                let reached = self.shards.counters().filter_map(|s| s.limits_reached.get(limit.index()));
                ([("limit", limit.as_str())], reached.map(Counter::value).sum())
            }),
        )?;
        out.gauge("flows_open", "Flows open now", self.sum(|s| &s.flows_open))?;
        out.family(
            "verdicts",
            "Answers of the policy to new flows",
            [("allow", self.sum(|s| &s.allowed)), ("deny", self.sum(|s| &s.denied))]
                .map(|(verdict, n)| ([("verdict", verdict)], n)),
        )?;
        out.family(
            "bytes",
            "Payload bytes; up is from clients",
            [("up", self.sum(|s| &s.bytes_up)), ("down", self.sum(|s| &s.bytes_down))]
                .map(|(direction, n)| ([("direction", direction)], n)),
        )?;
        let (buckets, count, sum) = self.dial();
        out.0
            .encode_descriptor("dial_seconds", "Time targets took to answer a dial", None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        out.counter("handshakes", "WireGuard handshakes completed", self.sum(|s| &s.handshakes))?;
        out.counter("handshakes_refused", "WireGuard handshakes refused", self.sum(|s| &s.handshakes_refused))?;
        out.family(
            "handshakes_limited",
            "WireGuard handshake messages over a limit, by limit",
            HandshakeLimit::ALL.iter().map(|limit| {
                let limited = self.shards.counters().filter_map(|s| s.handshakes_limited.get(limit.index()));
                ([("limit", limit.as_str())], limited.map(Counter::value).sum())
            }),
        )?;
        out.counter("cookie_replies", "WireGuard cookie replies sent", self.sum(|s| &s.cookie_replies))?;
        let lost = self.sum(|s| &s.records_lost).wrapping_add(self.flow_log.lost());
        out.counter("flow_records_lost", "Flow records that did not get into the flow log", lost)?;
        let revision = self.shards.counters().map(|s| s.revision.value()).min().unwrap_or(0);
        out.gauge("policy_revision", "Policy revision that every live flow has been judged by", revision)?;
        let failures = self.reload_failures.load(Ordering::Relaxed);
        out.counter("reload_failures", "Reloads refused; the policy before stayed in force", failures)?;
        let probed = self.offramps.all().filter_map(|offramp| Some((&**offramp.name(), offramp.report()?.up)));
        let help = "Whether new flows may go over an off-ramp that is probed, or that flows found down";
        let mut family = out.0.encode_descriptor("offramp_up", help, None, MetricType::Gauge)?;
        for (name, up) in probed {
            ConstGauge::new(i64::from(up)).encode(family.encode_family(&[("offramp", name)])?)?;
        }
        Ok(())
    }
}

/// Writes metrics without state of their own.
struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, &'static str); 1], u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    fn text(shards: &[Arc<ShardCounters>]) -> String {
        let shards = Shards::from_parts(shards.iter().map(|c| (mpsc::channel(1).0, Arc::clone(c))));
        Exporter::new(shards, Arc::default(), Arc::new(AtomicU64::new(3)), Arc::default()).text().unwrap()
    }

    #[test]
    fn names() {
        let text = text(&[Arc::default()]);
        let types: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        assert_eq!(
            types,
            [
                "portcullis_build info",
                "portcullis_packets_dropped counter",
                "portcullis_flows_opened counter",
                "portcullis_flows_ended counter",
                "portcullis_limits_reached counter",
                "portcullis_flows_open gauge",
                "portcullis_verdicts counter",
                "portcullis_bytes counter",
                "portcullis_dial_seconds histogram",
                "portcullis_handshakes counter",
                "portcullis_handshakes_refused counter",
                "portcullis_handshakes_limited counter",
                "portcullis_cookie_replies counter",
                "portcullis_flow_records_lost counter",
                "portcullis_policy_revision gauge",
                "portcullis_reload_failures counter",
                "portcullis_offramp_up gauge",
            ]
        );
        for line in [
            concat!("portcullis_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "portcullis_packets_dropped_total{reason=\"spoofed_source\"} 0",
            "portcullis_flows_ended_total{end=\"revoked\"} 0",
            "portcullis_limits_reached_total{limit=\"flows_per_device\"} 0",
            "portcullis_limits_reached_total{limit=\"ports\"} 0",
            "portcullis_verdicts_total{verdict=\"deny\"} 0",
            "portcullis_bytes_total{direction=\"up\"} 0",
            "portcullis_reload_failures_total 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let drops = text.lines().filter(|l| l.starts_with("portcullis_packets_dropped_total{")).count();
        assert_eq!(drops, DropReason::ALL.len());
        let ends = text.lines().filter(|l| l.starts_with("portcullis_flows_ended_total{")).count();
        assert_eq!(ends, FlowEnd::ALL.len());
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn shards_are_summed_and_the_slowest_gives_the_revision() {
        let shards: [Arc<ShardCounters>; 2] = Default::default();
        for (i, shard) in shards.iter().enumerate() {
            shard.drop_packet(DropReason::Checksum);
            shard.flow_ended(FlowEnd::Revoked);
            shard.bytes_up.add(5);
            shard.flows_open.set(2);
            shard.dial.observe(Duration::from_millis(3));
            shard.revision.set(7 + i as u64);
        }
        shards[0].dial.observe(Duration::from_secs(20));
        shards[1].records_lost.add(4);
        let text = text(&shards);
        for line in [
            "portcullis_packets_dropped_total{reason=\"checksum\"} 2",
            "portcullis_flows_ended_total{end=\"revoked\"} 2",
            "portcullis_bytes_total{direction=\"up\"} 10",
            "portcullis_flows_open 4",
            "portcullis_policy_revision 7",
            "portcullis_flow_records_lost_total 4",
            "portcullis_dial_seconds_bucket{le=\"0.0025\"} 0",
            "portcullis_dial_seconds_bucket{le=\"0.005\"} 2",
            "portcullis_dial_seconds_bucket{le=\"10.0\"} 2",
            "portcullis_dial_seconds_bucket{le=\"+Inf\"} 3",
            "portcullis_dial_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
