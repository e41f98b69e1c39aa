//! `policy.json`.
#![expect(
    missing_docs,
    reason = "what documents a key is what the schema says of it, and some say enough by their name"
)]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::json;

use super::text::{
    Days, Destination, Expected, Hours, Instant, Member, NAME, Name, NetOrAddress, NotSource, NotTarget, RESOURCE_NAME,
    Rewrite, Service, Source, Target, Zone,
};

/// What is allowed: rules in order, of which the first that matches decides; no match is a denial.
#[derive(Debug, JsonSchema)]
#[schemars(title = "Portcullis policy", deny_unknown_fields)]
pub struct Policy {
    /// Where this schema is, for editors; the gateway does not look.
    #[schemars(rename = "$schema")]
    pub schema: Option<String>,
    /// The version of this format: 1.
    #[schemars(extend("const" = 1))]
    pub version: u64,
    /// Groups of users and of other groups, besides those of the directory. A group of the same name there is the same group.
    #[schemars(extend("propertyNames" = json!({ "pattern": NAME })))]
    pub groups: Option<BTreeMap<String, Members>>,
    /// Places that rules lead to, by name.
    #[schemars(extend("propertyNames" = json!({ "pattern": RESOURCE_NAME })))]
    pub resources: Option<BTreeMap<String, Resource>>,
    /// What a device must be like, by name: every fact must be as expected.
    #[schemars(extend("propertyNames" = json!({ "pattern": NAME })))]
    pub postures: Option<BTreeMap<String, Posture>>,
    /// The rules in order.
    pub rules: Vec<Rule>,
    /// Questions with the answers that every load must give.
    pub tests: Option<Vec<Test>>,
}

/// The members of a group; those of a group among them are members too.
#[derive(Debug, JsonSchema)]
pub struct Members(#[schemars(length(min = 1))] pub Vec<Member>);

/// Addresses and what they offer.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Resource {
    /// Addresses and prefixes.
    #[schemars(length(min = 1))]
    pub addresses: Vec<NetOrAddress>,
    /// What is offered there; left out means every service.
    #[schemars(length(min = 1))]
    pub services: Option<Vec<Service>>,
    /// Free text.
    pub description: Option<String>,
}

/// Facts with what each must be.
#[derive(Debug, JsonSchema)]
pub struct Posture(#[schemars(extend("minProperties" = 1))] pub BTreeMap<String, Fact>);

/// What a fact must be, or a list of which it must be any.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Fact {
    One(Scalar),
    AnyOf(#[schemars(length(min = 1))] Vec<Scalar>),
}

/// A boolean or number that must be equal, or a text, which may compare versions.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Scalar {
    Bool(bool),
    Number(f64),
    Text(Expected),
}

/// What a rule does.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Action {
    /// Lets it pass.
    Allow,
    /// Refuses it.
    Deny,
}

/// Whether a rule decides.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Mode {
    /// It decides; the same as to leave it out.
    Enforce,
    /// It is logged where it matches, and decides nothing.
    Audit,
}

/// One rule. It matches what all its parts match.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Rule {
    /// The name of the rule in logs and explanations; no two have the same.
    pub id: Name,
    /// What it does with what it matches.
    pub action: Action,
    /// Whether it decides.
    pub mode: Option<Mode>,
    /// A denial is not answered; of deny rules only.
    pub silent: Option<bool>,
    /// Free text.
    pub description: Option<String>,
    /// Who may ask: any of these.
    #[schemars(length(min = 1))]
    pub from: Vec<Source>,
    /// Who may not, of those.
    pub not_from: Option<Vec<NotSource>>,
    /// Where it leads: any of these.
    #[schemars(length(min = 1))]
    pub to: Vec<Target>,
    /// Where it does not lead, of those.
    pub not_to: Option<Vec<NotTarget>>,
    /// Services, which narrow those of resources; left out means every one there is.
    #[schemars(length(min = 1))]
    pub services: Option<Vec<Service>>,
    /// Conditions that must all hold; flows end when one stops to.
    pub when: Option<When>,
    /// The off-ramp that flows take, whatever the routes say; of allow rules only.
    pub offramp: Option<String>,
    /// The target that flows go to instead of their destination; of allow rules only. No rule is asked about the target.
    pub rewrite: Option<Rewrite>,
}

/// Conditions of a rule.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct When {
    /// Names of postures, all of which the device must have.
    #[schemars(length(min = 1))]
    pub posture: Option<Vec<String>>,
    /// Days of the week.
    pub days: Option<SomeDays>,
    /// A part of the day.
    pub hours: Option<Hours>,
    /// Whose clock days and hours are of; UTC when left out.
    pub zone: Option<Zone>,
    /// The first instant at which the rule is in force.
    pub not_before: Option<Instant>,
    /// The first instant at which it no longer is.
    pub not_after: Option<Instant>,
}

/// Days as one text or as a list of such.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum SomeDays {
    Text(Days),
    List(#[schemars(length(min = 1))] Vec<Days>),
}

/// A question and its answer.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Test {
    /// Who asks: the name of a user, or `device:NAME`.
    pub from: String,
    /// The address it asks from; that of the device when left out.
    pub source: Option<super::text::Address>,
    /// Facts of the device, over those of the directory.
    pub posture: Option<BTreeMap<String, super::directory::Known>>,
    /// What it asks for.
    pub to: Destination,
    /// The answer.
    pub expect: Action,
    /// The id of the rule that must decide.
    pub rule: Option<String>,
    /// When it asks; the time of loading when left out.
    pub at: Option<Instant>,
    /// Free text.
    pub description: Option<String>,
}
