// Command health answers the kubelet's probes of every kind: HTTP on 8080,
// TCP on 8081, gRPC on 8082 and, called as "health check", exec.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const alive = "/tmp/alive"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "check" {
		if _, err := os.Stat(alive); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(alive, nil, 0o644); err != nil {
		log.Fatal(err)
	}
	go serveTCP(":8081")
	go serveGRPC(":8082")
	log.Fatal(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "seen from", r.RemoteAddr)
	})))
}

func serveTCP(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		c.Close()
	}
}

func serveGRPC(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	log.Fatal(s.Serve(l))
}
