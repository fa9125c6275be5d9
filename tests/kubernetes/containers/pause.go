package main

import (
	"os"
	"os/signal"
	"syscall"
)

// pause holds the namespaces of a pod, as process 1 of the pod if its containers share processes: it
// waits for a signal to end, and for the ends of processes that have lost their parents.
func pause() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for number := range signals {
		if number != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
}
