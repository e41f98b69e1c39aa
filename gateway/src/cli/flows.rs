//! `portcullis flows`.

use super::client::{self, query_value};
use super::output::{bytes, load_config, print, seconds, table};
use super::{ExitStatus, FlowsArgs};
use crate::control::api::{Flow, FlowList};

/// Runs the verb.
pub fn run(args: FlowsArgs) -> ExitStatus {
    let config = match load_config(&args.config.path) {
        Ok(config) => config,
        Err(status) => return status,
    };
    match client::get::<FlowList>(&config.control, &path(&args)) {
        Ok(answer) if args.json => print(&answer.text),
        Ok(answer) if args.denied => print(&denied_page(&answer.value)),
        Ok(answer) => print(&page(&answer.value)),
        Err(error) => error.report(),
    }
}

fn path(args: &FlowsArgs) -> String {
    let to = args.to.map(|to| to.to_string());
    let pairs = [("user", &args.user), ("device", &args.device), ("to", &to)];
    let mut query: Vec<_> = pairs
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", query_value(value.as_deref()?))))
        .collect();
    if args.denied {
        query.push("denied=true".to_owned());
    }
    format!("/v1/flows?{}", query.join("&"))
}

fn denied_page(list: &FlowList) -> String {
    let mut out = table(
        ["TIME", "USER", "DEVICE", "DESTINATION", "SERVICE", "RULE", "WHY"],
        list.flows.iter().map(|flow: &Flow| {
            let rule = flow.rule.clone().unwrap_or_else(|| "-".to_owned());
            [
                format!("{:.0}", flow.start),
                flow.user.clone(),
                flow.device.clone(),
                flow.destination.ip().to_string(),
                flow.service.clone(),
                rule,
                why(flow),
            ]
        }),
    );
    if list.total > list.flows.len() {
        out.push_str(&format!("{} of {} flows, the newest\n", list.flows.len(), list.total));
    }
    out
}

/// Why a flow was refused.
fn why(flow: &Flow) -> String {
    match (flow.ended.as_deref(), &flow.limit, &flow.rule) {
        (Some("limit"), Some(limit), _) => format!("limit {limit}"),
        (Some("denied"), _, Some(_)) => "denied".to_owned(),
        (Some("denied"), _, None) => "no rule, or never a destination: see `policy explain`".to_owned(),
        (ended, ..) => ended.unwrap_or("-").to_owned(),
    }
}

fn page(list: &FlowList) -> String {
    let mut out = table(
        ["ID", "USER", "DEVICE", "DESTINATION", "SERVICE", "RULE", "UP", "DOWN", "AGE"],
        list.flows.iter().map(|flow: &Flow| {
            [
                flow.id.to_string(),
                flow.user.clone(),
                flow.device.clone(),
                flow.destination.ip().to_string(),
                flow.service.clone(),
                flow.rule.clone().unwrap_or_else(|| "-".to_owned()),
                bytes(flow.bytes_up),
                bytes(flow.bytes_down),
                seconds((flow.duration_ms / 1e3) as u64),
            ]
        }),
    );
    if list.total > list.flows.len() {
        out.push_str(&format!("{} of {} flows, the oldest\n", list.flows.len(), list.total));
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::flow_record::FlowLine;
    use crate::flow_record::tests::record;

    #[test]
    fn the_query() {
        let cli = Cli::try_parse_from("portcullis flows --user a&b --to 10.0.0.0/8".split(' ')).unwrap();
        let Command::Flows(args) = cli.command else { panic!("another verb") };
        assert_eq!(path(&args), "/v1/flows?user=a%26b&to=10.0.0.0%2F8");
    }

    #[test]
    fn refusals_say_why() {
        use crate::flow_record::{FlowEnd, FlowRecord};
        let rule = FlowRecord { allowed: false, ended: Some(FlowEnd::Denied), ..record(12) };
        let default = FlowRecord { rule: None, ..rule.clone() };
        let flows = vec![FlowLine(&rule), FlowLine(&default)];
        let json = serde_json::to_string(&FlowList { total: 2, flows }).unwrap();
        let page = denied_page(&serde_json::from_str(&json).unwrap());
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines[1].ends_with("10.0.5.12    tcp/5432  dba-to-prod  denied"), "{page}");
        assert!(
            lines[2].ends_with("tcp/5432  -            no rule, or never a destination: see `policy explain`"),
            "{page}"
        );
        let cli = Cli::try_parse_from("portcullis flows --denied --user a".split(' ')).unwrap();
        let Command::Flows(args) = cli.command else { panic!("another verb") };
        assert_eq!(path(&args), "/v1/flows?user=a&denied=true");
    }

    #[test]
    fn the_table() {
        let (one, two) = (record(12), record(7));
        let json = serde_json::to_string(&FlowList { total: 3, flows: vec![FlowLine(&one), FlowLine(&two)] }).unwrap();
        assert_eq!(
            page(&serde_json::from_str(&json).unwrap()),
            "ID  USER             DEVICE      DESTINATION  SERVICE   RULE         UP  DOWN  AGE\n\
             12  ann@example.com  ann-laptop  10.0.5.12    tcp/5432  dba-to-prod  10  20    1s\n\
             7   ann@example.com  ann-laptop  10.0.5.12    tcp/5432  dba-to-prod  10  20    1s\n\
             2 of 3 flows, the oldest\n"
        );
    }
}
