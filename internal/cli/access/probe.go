package access

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	authenticationv1 "k8s.io/api/authentication/v1"

	"orlop.dev/orlop/api/subresources/v1alpha2"
)

// Probe asks who holds a stream ("console", "vnc") of a virtual machine. It holds
// nothing itself.
func (c *Cluster) Probe(ctx context.Context, target Target, subresource string) (v1alpha2.StreamHolder, error) {
	var holder v1alpha2.StreamHolder
	location, err := c.location(target, subresource, url.Values{"probe": {strconv.FormatBool(true)}})
	if err != nil {
		return holder, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location, http.NoBody)
	if err != nil {
		return holder, fmt.Errorf("ask for the holder: %w", err)
	}
	request.Header.Set("User-Agent", userAgent)
	response, err := c.http.Do(request)
	if err != nil {
		return holder, fmt.Errorf("ask for the holder: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return holder, fmt.Errorf("ask for the holder: the API server answered %s", response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<16)).Decode(&holder); err != nil {
		return holder, fmt.Errorf("read the holder: %w", err)
	}
	return holder, nil
}

// User returns the name that the API server knows the user by.
func (c *Cluster) User(ctx context.Context) (string, error) {
	review := &authenticationv1.SelfSubjectReview{}
	if err := c.Client.Create(ctx, review); err != nil {
		return "", fmt.Errorf("ask for the user's name: %w", err)
	}
	return review.Status.UserInfo.Username, nil
}
