//! The scheduler: gives each pod a node.

use kube::Client;

use crate::controllers::Informers;
use crate::controllers::tasks::Tasks;

/// A scheduler that runs until it is stopped.
pub struct Running {
    tasks: Tasks,
}

impl Running {
    /// Ends the scheduler and waits for the bindings that are under way.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

/// Starts the scheduler over the informers that it shares with the controllers.
pub fn start(client: Client, informers: &Informers) -> Running {
    let tasks = Tasks::default();
    let _ = (client, informers);
    Running { tasks }
}
