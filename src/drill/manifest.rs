//! Files of drills: `kind: Drill`, as `kubectl apply` takes them, and `kind: GameDay`, which is a sequence
//! of drills and pauses for the command line alone. A file may hold several documents.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_dev::{Drill, DrillSpec, Expectation, GoDuration};

use super::UsageError;
use super::plan::{GAME_DAY_LABEL, Plan, PlannedDrill, Step};

const VERSION: &str = "skiff.dev/v1";

/// What a GameDay's `spec` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GameDaySpec {
    #[serde(default)]
    description: Option<String>,
    steps: Vec<StepSpec>,
}

/// One of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepSpec {
    /// A Drill's `spec`, and the `name` of the step.
    drill: Option<Value>,
    pause: Option<GoDuration>,
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// A [`UsageError`] that says where in the file something is wrong.
pub fn read(path: &Path) -> anyhow::Result<Plan> {
    let (name, text) = if path == Path::new("-") {
        (
            "standard input".to_owned(),
            std::io::read_to_string(std::io::stdin()),
        )
    } else {
        (path.display().to_string(), std::fs::read_to_string(path))
    };
    let text = text.map_err(|error| UsageError::of(format!("cannot read {name}: {error}")))?;
    parse(&text).map_err(|error| UsageError::of(format!("{name}: {error:#}")))
}

/// The steps of all documents, one after the other.
fn parse(text: &str) -> anyhow::Result<Plan> {
    let mut plan = Plan {
        title: None,
        description: None,
        steps: Vec::new(),
    };
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let document = Value::deserialize(document).context("it is no YAML")?;
        if document.is_null() {
            continue;
        }
        if document["apiVersion"] != VERSION {
            anyhow::bail!(
                "it holds a document whose apiVersion is {}, not {VERSION}",
                document["apiVersion"]
            );
        }
        match document["kind"].as_str() {
            Some("Drill") => plan.steps.push(Step::Drill(Box::new(drill(document)?))),
            Some("GameDay") => add_game_day(&mut plan, &document)?,
            kind => anyhow::bail!(
                "it holds a {}: only Drill and GameDay can be run",
                kind.unwrap_or("document without a kind")
            ),
        }
    }
    if plan.drills().next().is_none() {
        anyhow::bail!("there is no drill in it");
    }
    Ok(plan)
}

fn drill(object: Value) -> anyhow::Result<PlannedDrill> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str();
    let prefix = metadata["generateName"].as_str();
    let title = name.or(prefix.map(|prefix| prefix.trim_end_matches('-')));
    let title = title.context("a Drill has no metadata.name")?.to_owned();
    let typed: Drill = serde_json::from_value(object.clone())
        .with_context(|| format!("Drill {title:?} can't be understood"))?;
    understand(&typed.spec).with_context(|| format!("Drill {title:?}"))?;
    Ok(PlannedDrill {
        title,
        kind: typed.spec.drill,
        target: typed.spec.target,
        object,
    })
}

/// What is text in a spec, and has a form all the same.
fn understand(spec: &DrillSpec) -> anyhow::Result<()> {
    for text in &spec.expect {
        text.parse::<Expectation>()?;
    }
    Ok(())
}

fn add_game_day(plan: &mut Plan, document: &Value) -> anyhow::Result<()> {
    let name = document["metadata"]["name"].as_str();
    let name = name.context("a GameDay has no metadata.name")?;
    let spec = GameDaySpec::deserialize(&document["spec"])
        .with_context(|| format!("GameDay {name:?} can't be understood"))?;
    for (index, step) in spec.steps.into_iter().enumerate() {
        let at = || format!("step {} of GameDay {name:?}", index + 1);
        plan.steps.push(match (step.drill, step.pause) {
            (Some(spec), None) => Step::Drill(Box::new(step_drill(name, spec).with_context(at)?)),
            (None, Some(pause)) => Step::Pause(pause),
            _ => anyhow::bail!("{} is to be either a drill or a pause", at()),
        });
    }
    // Several game days in a file are one with the first one's name.
    plan.title.get_or_insert_with(|| name.to_owned());
    plan.description = plan.description.take().or(spec.description);
    Ok(())
}

fn step_drill(game_day: &str, mut spec: Value) -> anyhow::Result<PlannedDrill> {
    let name = spec
        .as_object_mut()
        .and_then(|fields| fields.remove("name"));
    let typed = DrillSpec::deserialize(&spec)?;
    understand(&typed)?;
    let name = match name {
        None => typed.drill.to_string(),
        Some(Value::String(name)) => name,
        Some(other) => anyhow::bail!("its name is {other}, and no text"),
    };
    Ok(PlannedDrill {
        kind: typed.drill,
        target: typed.target,
        object: json!({
            "apiVersion": VERSION,
            "kind": "Drill",
            "metadata": {"generateName": format!("{name}-"), "labels": {GAME_DAY_LABEL: game_day}},
            "spec": spec,
        }),
        title: name,
    })
}

#[cfg(test)]
mod tests {
    use skiff_dev::DrillKind;

    use super::*;

    const GAME_DAY: &str = "
apiVersion: skiff.dev/v1
kind: GameDay
metadata: {name: friday}
spec:
  description: What breaks first.
  steps:
  - drill:
      name: crash
      drill: container-kill
      target: {kind: Deployment, name: web}
      expect: ['recovery<5s']
  - pause: 1m30s
  - drill: {drill: pod-delete, target: {kind: Selector, selector: app=web}}
";

    #[test]
    fn a_game_day_is_drills_and_pauses() {
        let plan = parse(GAME_DAY).unwrap();
        assert_eq!(plan.title.as_deref(), Some("friday"));
        assert_eq!(plan.description.as_deref(), Some("What breaks first."));
        let [Step::Drill(first), Step::Pause(pause), Step::Drill(second)] = &plan.steps[..] else {
            panic!("{:?}", plan.steps);
        };
        assert_eq!(
            (first.title.as_str(), first.kind),
            ("crash", DrillKind::ContainerKill)
        );
        assert_eq!(first.object["metadata"]["generateName"], "crash-");
        assert_eq!(first.object["metadata"]["labels"][GAME_DAY_LABEL], "friday");
        assert_eq!(first.object["spec"].get("name"), None);
        assert_eq!(first.object["spec"]["expect"][0], "recovery<5s");
        assert_eq!(*pause, GoDuration::from_secs(90));
        assert_eq!(second.title, "pod-delete");
    }

    #[test]
    fn several_documents_are_run_in_turn() {
        let one = |name: &str| {
            format!(
                "---\napiVersion: skiff.dev/v1\nkind: Drill\nmetadata: {{name: {name}}}\n\
                 spec: {{drill: pod-evict, target: {{kind: Pod, name: x}}, colour: red}}\n"
            )
        };
        let plan = parse(&format!("{}{}---\n", one("a"), one("b"))).unwrap();
        let titles: Vec<_> = plan.drills().map(|drill| drill.title.as_str()).collect();
        assert_eq!(titles, ["a", "b"]);
        assert_eq!(plan.title, None);
        // The API is to say what it thinks of a field that nobody knows.
        assert_eq!(
            plan.drills().next().unwrap().object["spec"]["colour"],
            "red"
        );
    }

    #[test]
    fn wrong_files_say_where() {
        let day = |steps: &str| {
            format!(
                "apiVersion: skiff.dev/v1\nkind: GameDay\nmetadata: {{name: d}}\nspec: {{steps: {steps}}}\n"
            )
        };
        for (text, expected) in [
            ("", "no drill in it"),
            ("a: [", "no YAML"),
            ("apiVersion: v1\nkind: Pod\n", "apiVersion is \"v1\""),
            ("apiVersion: skiff.dev/v1\nkind: DrillTask\n", "a DrillTask"),
            ("apiVersion: skiff.dev/v1\n", "without a kind"),
            (
                "apiVersion: skiff.dev/v1\nkind: Drill\n",
                "no metadata.name",
            ),
            (
                "apiVersion: skiff.dev/v1\nkind: Drill\nmetadata: {name: d}\nspec: {drill: container-hug, target: {kind: Pod}}",
                "container-hug",
            ),
            (
                "apiVersion: skiff.dev/v1\nkind: GameDay\nmetadata: {name: d}\n",
                "\"d\"",
            ),
            (&day("[]"), "no drill in it"),
            (&day("[{pause: 5s, drill: {}}]"), "step 1 of GameDay \"d\""),
            (&day("[{pause: five}]"), "five"),
            (
                &day("[{pause: 1s}, {drill: {drill: pod-delete}}]"),
                "step 2 of GameDay \"d\"",
            ),
            (
                &day("[{drill: {name: 5, drill: pod-delete, target: {kind: Pod, name: x}}}]"),
                "no text",
            ),
            (&day("[{wait: 5s}]"), "wait"),
            (
                &day(
                    "[{drill: {drill: pod-delete, target: {kind: Pod, name: x}, expect: [fast]}}]",
                ),
                "\"fast\" is no expectation",
            ),
        ] {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
