#!/usr/bin/env bash
# Makes the two instance profiles that cluster.yaml names. Once for an AWS account; again with the same bucket changes
# nothing but the policies.
#
# command:  jobs/aws-roles.sh BUCKET
#           batchseg-worker may read and write that bucket. batchseg-head also starts and ends machines, by
#           AmazonEC2FullAccess as Ray's own role does: it may do so with any machine of the account.
# hardware: none
# time, score: not run here
#
# Needs:    the AWS CLI with the right to make roles.
# Undo:     the AWS console, or remove-role-from-instance-profile, delete-instance-profile, … for both names.
set -euo pipefail
if [[ $# -ne 1 || $1 == -* || $1 == s3://* ]]; then
  echo "usage: jobs/aws-roles.sh BUCKET   (its name, without s3://)" >&2
  exit 2
fi
bucket=$1

trust='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
data='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": "arn:aws:s3:::'$bucket'"},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
   "Resource": "arn:aws:s3:::'$bucket'/*"}]}'

for name in batchseg-worker batchseg-head; do
  if ! aws iam get-role --role-name "$name" > /dev/null 2>&1; then
    aws iam create-role --role-name "$name" --assume-role-policy-document "$trust" > /dev/null
  fi
  aws iam put-role-policy --role-name "$name" --policy-name data --policy-document "$data"
  if ! aws iam get-instance-profile --instance-profile-name "$name" > /dev/null 2>&1; then
    aws iam create-instance-profile --instance-profile-name "$name" > /dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
  fi
done

# The head gives the workers their profile, and that one only.
worker=$(aws iam get-role --role-name batchseg-worker --query Role.Arn --output text)
pass='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "'$worker'"}]}'
aws iam put-role-policy --role-name batchseg-head --policy-name pass-worker --policy-document "$pass"
aws iam attach-role-policy --role-name batchseg-head --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
echo "made: batchseg-head, batchseg-worker for s3://$bucket"
