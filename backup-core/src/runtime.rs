//! [`ServiceRuntime`]: how a service is run (a container, a process, a systemd unit), and [`Interruption`], the only way
//! to stop or pause one.
