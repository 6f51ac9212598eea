//! Commands in running containers, and attachments to their own process.

use serde_json::json;
use skiff_agent::runtime::types::{AttachRequest, ExecRequest};
use skiff_agent::runtime::{Sandbox, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{DEADLINE, Node, ended, eventually, output};

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin: false,
    }
}

/// Runs a command to its end: exit code, output, errors.
async fn run(pod: &Sandbox, id: &str, command: &[&str]) -> (i32, String, String) {
    finish(pod.exec(id, request(command)).await.unwrap()).await
}

async fn finish(mut session: Session) -> (i32, String, String) {
    session.stdin = None;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdout = session.stdout.take();
    let stderr = session.stderr.take();
    let reading = async {
        if let Some(mut stdout) = stdout {
            stdout.read_to_end(&mut out).await.unwrap();
        }
        if let Some(mut stderr) = stderr {
            stderr.read_to_end(&mut err).await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.unwrap();
    let code = tokio::time::timeout(DEADLINE, session.wait())
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code.unwrap(), text(out), text(err))
}

#[tokio::test]
async fn commands_run_with_streams_and_codes() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let config = node.container(&pod, &["sleep", "1000"], json!({"workingDir": "/tmp"}));
    let id = node.start(&pod, config).await.id;
    let (code, out, err) = run(&pod, &id, &["sh", "-c", "pwd; echo bad >&2; exit 5"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (5, "/tmp\n", "bad\n"));
    let (code, ..) = run(&pod, &id, &["sh", "-c", "kill -9 $$"]).await;
    assert_eq!(code, 137);
    let refused = pod.exec(&id, request(&["no-such"])).await.unwrap_err();
    let expected = "exec: \"no-such\": executable file not found in $PATH";
    assert!(refused.to_string().contains(expected), "{refused}");
    let mut with_input = request(&["cat"]);
    with_input.stdin = true;
    let mut session = pod.exec(&id, with_input).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through the pipe").await.unwrap();
    drop(stdin);
    let (code, out, _) = finish(session).await;
    assert_eq!((code, out.as_str()), (0, "through the pipe"));
    node.finish().await;
}

#[tokio::test]
async fn many_commands_at_once() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let id = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await
        .id;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (pod, id) = (pod.clone(), id.clone());
        tasks.spawn(async move {
            let script = format!("echo {number}; exit {number}");
            run(&pod, &id, &["sh", "-c", &script]).await
        });
    }
    let mut codes: Vec<i32> = tasks
        .join_all()
        .await
        .into_iter()
        .map(|(code, ..)| code)
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, (0..20).collect::<Vec<_>>());
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_one_stream() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let id = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await
        .id;
    let mut command = request(&["sh", "-c", "read line; stty size; echo got $line >&2"]);
    command.tty = true;
    command.stdin = true;
    let mut session = pod.exec(&id, command).await.unwrap();
    session.terminal.as_ref().unwrap().resize(33, 99).unwrap();
    let stdin = session.stdin.as_mut().unwrap();
    stdin.write_all(b"input\n").await.unwrap();
    let (code, out, _) = finish(session).await;
    assert_eq!(code, 0);
    assert!(out.contains("33 99\r\n"), "{out:?}");
    assert!(out.contains("got input\r\n"), "{out:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_command_whose_client_leaves_is_killed() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let id = node
        .start(&pod, node.container(&pod, &["sleep", "1000"], json!({})))
        .await
        .id;
    let session = pod.exec(&id, request(&["sleep", "2000"])).await.unwrap();
    let group = pod.group(&id);
    let processes = || node.runtime.cgroups().processes(&group).len();
    assert_eq!(processes(), 2);
    drop(session);
    eventually(|| processes() == 1).await;
    node.finish().await;
}

#[tokio::test]
async fn an_attachment_follows_output_and_feeds_input() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let script = "while read line; do echo echo $line; done; echo end";
    let declared = json!({"stdin": true, "stdinOnce": true});
    let config = node.shell(&pod, script, declared);
    let log = config.log_path.clone();
    let id = node.start(&pod, config).await.id;
    let mut session = pod
        .attach(
            &id,
            AttachRequest {
                tty: false,
                stdin: true,
            },
        )
        .await
        .unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"one\n")
        .await
        .unwrap();
    let mut text = vec![0; 9];
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut text)
        .await
        .unwrap();
    assert_eq!(text, b"echo one\n");
    drop(session);
    assert_eq!(ended(&pod, &id).await.exit_code, 0);
    assert_eq!(output(&log), "echo one\nend\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_may_have_a_terminal() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let declared = json!({"tty": true, "stdin": true});
    let config = node.shell(&pod, "read line; echo $TERM got $line; stty size", declared);
    let log = config.log_path.clone();
    let id = node.start(&pod, config).await.id;
    let mut session = pod
        .attach(
            &id,
            AttachRequest {
                tty: true,
                stdin: true,
            },
        )
        .await
        .unwrap();
    session.terminal.as_ref().unwrap().resize(20, 50).unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"x\n")
        .await
        .unwrap();
    let code = tokio::time::timeout(DEADLINE, session.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(code, 0);
    let text = output(&log);
    assert!(
        text.contains("xterm got x\n") && text.contains("20 50\n"),
        "{text:?}"
    );
    node.finish().await;
}
