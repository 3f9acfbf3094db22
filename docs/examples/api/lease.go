// Lease a proxy, send a request through it, and say what became of it.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

type Lease struct {
	LeaseID   string    `json:"lease_id"`
	ProxyURL  string    `json:"proxy_url"`
	Status    string    `json:"status"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Problem is why a request got nothing (RFC 9457); act on Code.
type Problem struct {
	Status            int      `json:"status"`
	Code              string   `json:"code"`
	Detail            string   `json:"detail"`
	Reason            string   `json:"reason"`
	RetryAfterSeconds *float64 `json:"retry_after_seconds"`
}

func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// Client asks over a Unix socket if PHAROX_SOCKET names one, else at PHAROX_API.
type Client struct {
	http *http.Client
	base string
}

func NewClient() *Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	base := os.Getenv("PHAROX_API")
	if socket := os.Getenv("PHAROX_SOCKET"); socket != "" {
		base = "http://pharox/api/v1"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return &Client{&http.Client{Transport: transport}, base}
}

func (c *Client) ask(ctx context.Context, path string, body, into any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("PHAROX_TOKEN"))
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		problem := new(Problem)
		if err := json.NewDecoder(answer.Body).Decode(problem); err != nil {
			return err
		}
		return problem
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

// newID returns a random UUID.
func newID() string {
	id := make([]byte, 16)
	rand.Read(id)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// Acquire asks under an id of its own: if an answer gets lost, the same request returns the same
// lease. That may have been given back meanwhile: then it has ended, and a new id is drawn.
func (c *Client) Acquire(ctx context.Context, asked map[string]any) (lease Lease, err error) {
	asked["lease_id"] = newID()
	for attempt := 1; ; attempt++ {
		err = c.ask(ctx, "/acquire", asked, &lease)
		problem := new(Problem)
		isProblem := errors.As(err, &problem)
		hasEnded := isProblem && problem.Code == "lease_ended"
		passes := !isProblem || hasEnded || problem.Status == http.StatusServiceUnavailable
		if err == nil || !passes || attempt == 5 {
			return lease, err
		}
		if hasEnded {
			asked["lease_id"] = newID()
		}
		time.Sleep(time.Duration(attempt) * time.Second)
	}
}

func main() {
	ctx, client := context.Background(), NewClient()
	asked := map[string]any{"pool": "residential", "target": os.Args[1], "wait_seconds": 30}
	lease, err := client.Acquire(ctx, asked)
	if err != nil {
		log.Fatal(err)
	}
	outcome := map[string]any{"kind": "proxy_failed"}
	defer func() {
		released := map[string]any{"lease_id": lease.LeaseID, "outcome": outcome}
		if err := client.ask(ctx, "/release", released, &lease); err != nil {
			log.Fatal(err)
		}
		fmt.Println(lease.Status)
	}()
	proxy, err := url.Parse(lease.ProxyURL)
	if err != nil {
		log.Fatal(err)
	}
	through := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	if answer, err := through.Get(os.Args[1]); err == nil {
		answer.Body.Close()
		outcome = map[string]any{"status": answer.StatusCode} // judged by the fleet's rules
	}
}
