//! Drills as objects of the API: what kubectl shows, explains and refuses.

use crate::cluster::Cluster;

const DRILL: &str = "
apiVersion: skiff.dev/v1
kind: Drill
metadata: {name: rehearsal}
spec:
  drill: container-kill
  target: {kind: Deployment, name: web}
  seed: 7
  dryRun: true
  expect: [recovery<5s, failed<1%]
";

#[test]
fn kubectl_knows_drills() {
    let cluster = Cluster::start_empty();
    let resources = cluster.kubectl("api-resources --api-group=skiff.dev --no-headers");
    for line in ["drills ", "drilltasks "] {
        assert!(resources.contains(line), "{resources}");
    }
    let explained = cluster.kubectl("explain drill.spec");
    assert!(
        explained.contains("How many victims, 1 or more"),
        "{explained}"
    );
    let explained = cluster.kubectl("explain drills.status.requests.latency");
    assert!(explained.contains("p99"), "{explained}");

    assert_eq!(cluster.apply(DRILL), "drill.skiff.dev/rehearsal created\n");
    assert_eq!(
        cluster.apply(DRILL),
        "drill.skiff.dev/rehearsal unchanged\n"
    );
    let own = "apply --server-side --force-conflicts -f -";
    let applied = cluster.feed(own, DRILL);
    assert_eq!(applied, "drill.skiff.dev/rehearsal serverside-applied\n");

    let listed = cluster.kubectl("get drills");
    let words: Vec<Vec<&str>> = listed
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        [
            "NAME", "DRILL", "TARGET", "PHASE", "RESULT", "DETECT", "RECOVERY", "AGE"
        ]
    );
    assert_eq!(
        words[1][..3],
        ["rehearsal", "container-kill", "deployment/web"]
    );
    let wide = cluster.kubectl("get drills.skiff.dev -o wide");
    assert!(wide.contains("FAILED") && wide.contains("SEED"), "{wide}");
    let tasks = cluster.kubectl("get drilltasks");
    assert_eq!(tasks, "", "nothing is done in a dry run");
    let described = cluster.kubectl("describe drill rehearsal");
    assert!(
        described.contains("Timeout:") && described.contains("2m0s"),
        "{described}"
    );

    let cancel = "patch drill rehearsal --type merge -p";
    cluster.kubectl(&format!("{cancel} {{\"spec\":{{\"cancel\":true}}}}"));
    let back = refused(
        &cluster,
        &format!("{cancel} {{\"spec\":{{\"cancel\":false}}}}"),
    );
    assert!(
        back.contains("spec.cancel: Forbidden: may not be taken back"),
        "{back}"
    );
    let other = refused(&cluster, &format!("{cancel} {{\"spec\":{{\"seed\":8}}}}"));
    assert!(
        other.contains("spec: Forbidden: field is immutable, but for `cancel`"),
        "{other}"
    );
    cluster.kubectl("delete drill rehearsal --timeout=60s");
    assert_eq!(cluster.kubectl("get drills"), "");
}

#[test]
fn wrong_drills_are_refused_with_every_reason() {
    let cluster = Cluster::start_empty();
    let file = cluster.scratch().join("drill.yaml");
    let told = |manifest: String| {
        std::fs::write(&file, manifest).expect("a file");
        refused(&cluster, &format!("apply -f {}", file.display()))
    };
    let unknown = told(DRILL.replace("container-kill", "container-hug"));
    assert!(
        unknown.contains(
            "spec.drill: Unsupported value: \"container-hug\": supported values: \"container-kill\""
        ),
        "{unknown}"
    );
    let misspelt = told(DRILL.replace("seed: 7", "sead: 7"));
    assert!(
        misspelt.contains("unknown field \"spec.sead\""),
        "{misspelt}"
    );
    let several = told(
        DRILL
            .replace("seed: 7", "count: 0\n  duration: 5s")
            .replace("5s,", "5,"),
    );
    for why in [
        "spec.count: Invalid value: 0: must be between 1 and",
        "spec.duration: Forbidden: container-kill is over the moment that it has happened",
        "spec.expect[0]: Invalid value: \"recovery<5\": \"5\" can't be compared with recovery",
    ] {
        assert!(several.contains(why), "{several}");
    }
    let mistyped = told(DRILL.replace("seed: 7", "seed: many"));
    assert!(mistyped.contains("of type int64"), "{mistyped}");
    assert_eq!(cluster.kubectl("get drills"), "");
}

/// What kubectl says of something that it must not succeed with.
fn refused(cluster: &Cluster, args: &str) -> String {
    let output = cluster.try_kubectl(args);
    assert!(!output.status.success(), "kubectl {args} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
