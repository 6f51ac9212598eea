//! What the observer's watches saw, in the words of a timeline.
//!
//! Everything is concluded from the objects alone, by rules that are written down here a second time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::watch::{Kind, When};

/// Longer messages of Events are cut in a report.
const MESSAGE: usize = 200;

/// Something that happened to an object, as `pod/web-1`.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) when: When,
    pub(super) event: String,
    pub(super) object: String,
    pub(super) detail: String,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) seen: Vec<Seen>,
    /// How many pods were Ready and in the Service, each time that this changed.
    whole: Vec<(When, usize)>,
    /// By uid, also those that are gone.
    pub(super) pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Node>,
    /// The uids that each slice leads to, by its name.
    slices: BTreeMap<String, BTreeSet<String>>,
    pub(super) told: Vec<Told>,
    /// How often each Event of the API had happened, by its uid.
    counts: BTreeMap<String, i64>,
    /// When fault tasks were seen to be over.
    pub(super) ended: Vec<When>,
    over: BTreeSet<String>,
    listed: BTreeSet<Kind>,
    /// Lists that had to make good for what watches could not tell.
    pub(super) gaps: Vec<When>,
}

#[derive(Debug, Default)]
pub(super) struct Pod {
    pub(super) object: String,
    pub(super) node: String,
    ready: bool,
    /// When it was first seen, and was not there before.
    pub(super) created: Option<When>,
    /// When it was first seen to be on its way out, or over.
    pub(super) left: Option<When>,
    pub(super) gone: Option<When>,
    restarts: i64,
    /// Each time that containers were started anew, how often.
    pub(super) restarted: Vec<(When, i64)>,
    /// The ids of each container that runs, and of the one that ended last.
    containers: BTreeMap<String, (String, String)>,
}

#[derive(Debug, Default, PartialEq)]
struct Node {
    ready: bool,
    cordoned: bool,
    pressures: Vec<&'static str>,
}

/// So many times more an Event of the API.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) when: When,
    pub(super) about_uid: String,
    pub(super) object: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) more: i64,
}

impl Record {
    /// Takes in everything that there is.
    pub(super) fn list(&mut self, kind: Kind, when: When, objects: &[Value]) {
        if self.listed.contains(&kind) {
            self.gaps.push(when);
        }
        let uids: BTreeSet<String> = objects
            .iter()
            .map(|o| text(&o["metadata"]["uid"]))
            .collect();
        if kind == Kind::Pod {
            let gone = self
                .pods
                .iter()
                .filter(|(uid, pod)| pod.gone.is_none() && !uids.contains(*uid));
            let gone: Vec<String> = gone.map(|(uid, _)| uid.clone()).collect();
            for uid in gone {
                self.lose_pod(when, &uid);
            }
        }
        for object in objects {
            self.see(kind, when, object);
        }
        self.listed.insert(kind);
    }

    pub(super) fn see(&mut self, kind: Kind, when: When, object: &Value) {
        match kind {
            Kind::Pod => self.see_pod(when, object),
            Kind::Node => self.see_node(when, object),
            Kind::Slice => self.see_slice(when, text(&object["metadata"]["name"]), served(object)),
            Kind::Event => self.see_event(when, object),
            Kind::Task => self.see_task(when, object),
        }
        self.count(when);
    }

    pub(super) fn lose(&mut self, kind: Kind, when: When, object: &Value) {
        match kind {
            Kind::Pod => self.lose_pod(when, &text(&object["metadata"]["uid"])),
            Kind::Slice => self.see_slice(when, text(&object["metadata"]["name"]), BTreeSet::new()),
            Kind::Node => {
                let name = text(&object["metadata"]["name"]);
                self.nodes.remove(&name);
                self.note(Kind::Node, when, "deleted", &format!("node/{name}"), "");
            }
            Kind::Event | Kind::Task => {}
        }
        self.count(when);
    }

    /// What was there at the beginning is nothing that happened.
    fn note(&mut self, kind: Kind, when: When, event: &str, object: &str, detail: &str) {
        if self.listed.contains(&kind) {
            self.seen.push(Seen {
                when,
                event: event.to_owned(),
                object: object.to_owned(),
                detail: detail.to_owned(),
            });
        }
    }

    fn see_pod(&mut self, when: When, object: &Value) {
        let is_news = self.listed.contains(&Kind::Pod);
        let uid = text(&object["metadata"]["uid"]);
        let is_new = !self.pods.contains_key(&uid);
        let pod = self.pods.entry(uid).or_default();
        let mut events: Vec<(&str, String)> = Vec::new();
        if is_new {
            pod.object = format!("pod/{}", text(&object["metadata"]["name"]));
            pod.created = is_news.then_some(when);
            events.push(("created", String::new()));
        }
        let node = text(&object["spec"]["nodeName"]);
        if pod.node != node {
            events.push(("scheduled", format!("node/{node}")));
            pod.node = node;
        }
        let status = &object["status"];
        let mut restarts = 0;
        for container in status["containerStatuses"].as_array().into_iter().flatten() {
            restarts += container["restartCount"].as_i64().unwrap_or_default();
            pod.see_container(container, &mut events);
        }
        if restarts > pod.restarts {
            let more = restarts - pod.restarts;
            pod.restarted.extend(is_news.then_some((when, more)));
            pod.restarts = restarts;
        }
        let is_over = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        let is_leaving = is_over || !object["metadata"]["deletionTimestamp"].is_null();
        let ready = holds(status, "Ready") && !is_leaving;
        if pod.ready != ready && !is_leaving {
            events.push((if ready { "ready" } else { "notReady" }, String::new()));
        }
        pod.ready = ready;
        if is_leaving && pod.left.is_none() {
            pod.left = Some(when);
            let event = if is_over { "finished" } else { "terminating" };
            events.push((event, String::new()));
        }
        let name = pod.object.clone();
        for (event, detail) in events {
            self.note(Kind::Pod, when, event, &name, &detail);
        }
    }

    fn lose_pod(&mut self, when: When, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        pod.left.get_or_insert(when);
        (pod.gone, pod.ready) = (Some(when), false);
        let object = pod.object.clone();
        self.note(Kind::Pod, when, "deleted", &object, "");
    }

    fn see_node(&mut self, when: When, object: &Value) {
        let name = text(&object["metadata"]["name"]);
        let status = &object["status"];
        let pressures = ["MemoryPressure", "DiskPressure", "PIDPressure"].into_iter();
        let now = Node {
            ready: holds(status, "Ready"),
            cordoned: object["spec"]["unschedulable"] == true,
            pressures: pressures.filter(|kind| holds(status, kind)).collect(),
        };
        let mut events = Vec::new();
        let before = self.nodes.get(&name);
        if before.is_none_or(|before| before.ready != now.ready) {
            events.push(if now.ready { "ready" } else { "notReady" });
        }
        if before.is_some_and(|before| before.cordoned) != now.cordoned {
            events.push(if now.cordoned {
                "cordoned"
            } else {
                "uncordoned"
            });
        }
        let (had, has) = (before.map_or(0, |b| b.pressures.len()), now.pressures.len());
        if before
            .map(|b| &b.pressures)
            .is_none_or(|had| *had != now.pressures)
            && had + has > 0
        {
            events.push(if has >= had { "pressure" } else { "relieved" });
        }
        self.nodes.insert(name.clone(), now);
        for event in events {
            self.note(Kind::Node, when, event, &format!("node/{name}"), "");
        }
    }

    fn see_slice(&mut self, when: When, name: String, served: BTreeSet<String>) {
        let before = self.served();
        self.slices.insert(name, served);
        let after = self.served();
        let of = |uid: &String| self.pods.get(uid).map(|pod| pod.object.clone());
        let came = after.difference(&before).filter_map(of);
        let came: Vec<_> = came.map(|object| ("inService", object)).collect();
        let went = before.difference(&after).filter_map(of);
        let went: Vec<_> = went.map(|object| ("outOfService", object)).collect();
        for (event, object) in came.into_iter().chain(went) {
            self.note(Kind::Slice, when, event, &object, "");
        }
    }

    fn served(&self) -> BTreeSet<String> {
        self.slices.values().flatten().cloned().collect()
    }

    fn see_event(&mut self, when: When, object: &Value) {
        let count = object["count"].as_i64().unwrap_or(1).max(1);
        let before = self.counts.insert(text(&object["metadata"]["uid"]), count);
        let more = count - before.unwrap_or_default();
        if more <= 0 || !self.listed.contains(&Kind::Event) {
            return;
        }
        let about = &object["involvedObject"];
        let kind = text(&about["kind"]).to_lowercase();
        let mut message = text(&object["message"]);
        if let Some((cut, _)) = message.char_indices().nth(MESSAGE) {
            message.truncate(cut);
            message.push('…');
        }
        self.told.push(Told {
            when,
            about_uid: text(&about["uid"]),
            object: format!("{kind}/{}", text(&about["name"])),
            reason: text(&object["reason"]),
            message,
            more,
        });
    }

    fn see_task(&mut self, when: When, object: &Value) {
        let action = object["spec"]["action"]["type"].as_str();
        let is_fault = !matches!(action, Some("Probe" | "Write"));
        let is_over = matches!(object["status"]["phase"].as_str(), Some("Ended" | "Failed"));
        if is_fault && is_over && self.over.insert(text(&object["metadata"]["uid"])) {
            self.ended.push(when);
        }
    }

    fn count(&mut self, when: When) {
        let served = self.served();
        let whole = self
            .pods
            .iter()
            .filter(|(uid, pod)| pod.ready && served.contains(*uid));
        let whole = whole.count();
        if self.whole.last().map(|(_, count)| *count) != Some(whole) {
            self.whole.push((when, whole));
        }
    }

    /// Since when so many pods are Ready in the Service, at the end.
    pub(super) fn whole_since(&self, count: usize) -> Option<When> {
        let lacked = self.whole.iter().rposition(|(_, whole)| *whole < count);
        let since = self.whole.get(lacked.map_or(0, |at| at + 1))?;
        Some(since.0)
    }
}

impl Pod {
    fn see_container(&mut self, container: &Value, events: &mut Vec<(&str, String)>) {
        let name = text(&container["name"]);
        let (running, ended) = self.containers.entry(name.clone()).or_default();
        let current = &container["state"]["terminated"];
        let end = match current.is_null() {
            true => &container["lastState"]["terminated"],
            false => current,
        };
        let id = text(&end["containerID"]);
        if !id.is_empty() && *ended != id {
            let reason = end["reason"].as_str().unwrap_or("Terminated");
            let told = format!("{name}: {reason}, exit code {}", end["exitCode"]);
            events.push(("terminated", told));
            *ended = id;
        }
        let id = text(&container["containerID"]);
        let runs = !container["state"]["running"].is_null();
        if runs && !id.is_empty() && *running != id {
            events.push(("started", name));
            *running = id;
        }
    }
}

/// The uids of the pods that a slice leads to.
fn served(slice: &Value) -> BTreeSet<String> {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
    ready
        .map(|endpoint| text(&endpoint["targetRef"]["uid"]))
        .collect()
}

fn holds(status: &Value, condition: &str) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == condition && c["status"] == "True")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
